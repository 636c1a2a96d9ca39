# SPDX-License-Identifier: Apache-2.0
"""`python -m tests.bench.codec`: what each codec saves and what it changes, in a table.

The embeddings are those that the vision tower of the Qwen2.5-VL demo makes of demo images, with its random weights, and
random ones of a large model's width: without outliers, and with a few columns a hundred times as large as the others,
as language models have them. Times are those of torch on this machine's CPU.
"""

import io
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from statistics import median

import torch
from PIL import Image
from rich.console import Console

from tests.bench.tables import new_table
from vllm_epd.demo import demo_image, ensure_model
from vllm_epd.transfer.codec import CODECS, NONE, decode, encode, item_bytes, row_errors

WIDTH = 160
IMAGES = 8
ROWS, HIDDEN = 1024, 3584
OUTLIERS, SPREAD = 4, 100.0
REPEATS = 7
SEED = 22


@dataclass(frozen=True, slots=True)
class Measured:
    """What a codec makes of one tensor.

    Attributes:
        row_bytes: on the wire, scales included.
        ratio: of these to the bytes as they are.
        mean_error: of the rows, in the Euclidean norm relative to the row's.
        worst_error: of the worst row.
        encode_s: median of the times.
        decode_s: the same.
    """

    row_bytes: float
    ratio: float
    mean_error: float
    worst_error: float
    encode_s: float
    decode_s: float


def main() -> None:
    """Measure and print."""
    torch.manual_seed(SEED)
    table = new_table(
        "Embeddings by codec",
        "embeddings",
        "codec",
        "bytes / row",
        "of raw",
        "mean error",
        "worst row",
        "encode ms",
        "decode ms",
    )
    for name, tensor in embeddings():
        for codec in CODECS:
            table.add_row(name if codec == NONE else "", codec, *_cells(measure(tensor, codec)))
        table.add_section()
    Console(width=WIDTH).print(table)


def embeddings() -> Iterator[tuple[str, torch.Tensor]]:
    """Tensors [rows, width], each with a name."""
    shown = demo_embeddings()
    plain = torch.randn(ROWS, HIDDEN)
    heavy = plain.clone()
    heavy[:, torch.randperm(HIDDEN)[:OUTLIERS]] *= SPREAD
    for name, tensor in (("Qwen2.5-VL demo tower", shown), ("random, normal", plain), ("random, outliers", heavy)):
        for dtype in (torch.float32, torch.bfloat16):
            yield f"{name}, {str(dtype).removeprefix('torch.')} {list(tensor.shape)}", tensor.to(dtype)


def demo_embeddings() -> torch.Tensor:
    """What the demo's vision tower makes of its images, float32 [rows, width]."""
    from transformers import AutoImageProcessor, Qwen2_5_VLForConditionalGeneration

    folder = ensure_model("qwen2.5-vl")
    model = Qwen2_5_VLForConditionalGeneration.from_pretrained(folder, dtype=torch.float32)
    images = [Image.open(io.BytesIO(demo_image(seed, 448, 448))) for seed in range(IMAGES)]
    given = AutoImageProcessor.from_pretrained(folder)(images=images, return_tensors="pt")
    with torch.no_grad():
        return model.model.visual(given.pixel_values, grid_thw=given.image_grid_thw).pooler_output


def measure(tensor: torch.Tensor, codec: str) -> Measured:
    """Encode and decode `tensor` a few times."""
    rows, nbytes = tensor.shape[0], item_bytes(tensor.shape, tensor.dtype, codec)
    if codec == NONE:
        return Measured(nbytes / rows, 1.0, 0.0, 0.0, 0.0, 0.0)
    encoded = encode(tensor, codec)
    errors = row_errors(tensor, decode(encoded, tensor.shape, tensor.dtype, codec))
    return Measured(
        row_bytes=encoded.numel() / rows,
        ratio=encoded.numel() / tensor.nbytes,
        mean_error=float(errors.mean()),
        worst_error=float(errors.amax()),
        encode_s=_median_s(lambda: encode(tensor, codec)),
        decode_s=_median_s(lambda: decode(encoded, tensor.shape, tensor.dtype, codec)),
    )


def _median_s(action: Callable[[], object]) -> float:
    seconds = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        action()
        seconds.append(time.perf_counter() - start)
    return median(seconds)


def _cells(found: Measured) -> list[str]:
    errors = f"{found.mean_error:.4f}", f"{found.worst_error:.4f}"
    times = f"{found.encode_s * 1e3:.1f}", f"{found.decode_s * 1e3:.1f}"
    return [f"{found.row_bytes:.0f}", f"{found.ratio:.4f}", *errors, *times]


if __name__ == "__main__":
    main()
