# SPDX-License-Identifier: Apache-2.0
"""What preprocessing an image costs one core: the numbers of `planner.profile.derive.preprocessing`.

`python -m tests.bench.preprocess` decodes JPEGs of several sizes and does what the processors of the models do, in one
thread, and prints the fitted costs. Decoding apart, as some systems take images that are decoded already.
"""

import io
import time
from collections.abc import Callable

import numpy as np
import torch
from PIL import Image
from transformers.models.qwen2_vl.image_processing_qwen2_vl import Qwen2VLImageProcessor
from vllm.transformers_utils.processors.internvl import image_to_pixel_values_internvl

from vllm_epd.demo.remote_code.image_processing_minicpmv import MiniCPMVImageProcessor
from vllm_epd.planner.profile.derive.architectures import INTERNVL2_8B, MINICPM_V_2_6, QWEN2_5_VL_7B
from vllm_epd.planner.profile.fit import fit_line
from vllm_epd.planner.profile.media import measure_visual
from vllm_epd.planner.profile.profile import Native, Tiled
from vllm_epd.planner.workload.requests import Item, Kind

SIZES = ((313, 234), (640, 480), (787, 444), (1280, 720), (1920, 1080), (2560, 1920), (4032, 3024))
QUALITY = 90
NOISE = 14
"""Standard deviation; files then have 0.4 bytes a pixel, as those of cameras."""
REPEATS = 7


def photo(width: int, height: int) -> bytes:
    """A JPEG of smooth areas with fine noise, as cameras make them."""
    rng = np.random.default_rng(0)
    coarse = Image.fromarray(rng.integers(0, 256, (height // 40 + 2, width // 40 + 2, 3), dtype=np.uint8))
    smooth = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC), dtype=np.int16)
    noisy = smooth + rng.normal(0, NOISE, smooth.shape).astype(np.int16)
    file = io.BytesIO()
    Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(file, "JPEG", quality=QUALITY)
    return file.getvalue()


def decode(content: bytes) -> Image.Image:
    return Image.open(io.BytesIO(content)).convert("RGB")


def fastest(work: Callable[[], object]) -> float:
    times = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return min(times)


def internvl(image: Image.Image) -> object:
    return image_to_pixel_values_internvl(image, input_size=448, min_num=1, max_num=12, use_thumbnail=True)


def patches(media: Tiled | Native, width: int, height: int) -> int:
    return measure_visual(media, Item(Kind.IMAGE, width, height)).patches


def main() -> None:
    torch.set_num_threads(1)
    files = {size: photo(*size) for size in SIZES}
    decoding = [fastest(lambda content=content: decode(content)) for content in files.values()]
    report("decode", [(1.0, float(w * h)) for w, h in SIZES], decoding)
    media = QWEN2_5_VL_7B.media
    qwen = Qwen2VLImageProcessor(min_pixels=media.least_pixels, max_pixels=media.most_pixels)
    cases = {
        "minicpm": (MINICPM_V_2_6, MiniCPMVImageProcessor()),
        "internvl": (INTERNVL2_8B, internvl),
        "qwen": (QWEN2_5_VL_7B, qwen),
    }
    for name, (model, process) in cases.items():
        images = {size: decode(content) for size, content in files.items()}
        times = [fastest(lambda image=image, process=process: process(image)) for image in images.values()]
        report(name, [(1.0, float(w * h), float(patches(model.media, w, h))) for w, h in SIZES], times)


def report(name: str, rows: list[tuple[float, ...]], times: list[float]) -> None:
    line = fit_line(rows, times)
    print(name, [f"{each:.3g}" for each in line.coefficients], line.fit)
    for size, seconds in zip(SIZES, times, strict=True):
        print(f"  {size[0]}x{size[1]}: {seconds * 1e3:.1f} ms")


if __name__ == "__main__":
    main()
