# SPDX-License-Identifier: Apache-2.0
"""The parts of an item, encoded each by itself by the model's own code, are the rows of the item encoded as one."""

import json
import os
import subprocess
import sys
from typing import Any

import pytest

pytest.importorskip("vllm")

PROGRAM = """
import io, json, socket, sys
import numpy as np
import torch
from PIL import Image
from vllm_epd.plugin import register
register()
from vllm import AsyncEngineArgs
from vllm.config import set_current_vllm_config
from vllm.distributed import init_distributed_environment, initialize_model_parallel
from vllm.model_executor.model_loader import get_model, get_model_cls
from vllm.multimodal import MULTIMODAL_REGISTRY
from vllm.multimodal.inputs import MultiModalFeatureSpec
from vllm.multimodal.processing.context import TimingContext
from vllm.multimodal.processing.inputs import ProcessorInputs
from vllm.multimodal.utils import group_and_batch_mm_kwargs
from vllm_epd.compat.cuts import cuts_of
from vllm_epd.compat.shards import shard_features
from vllm_epd.demo import demo_image, ensure_model

family, modality, width, height = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
FRAMES = 9

def picture(seed):
    return Image.open(io.BytesIO(demo_image(seed, width, height))).convert("RGB")

def data():
    if modality == "image":
        return picture(1)
    frames = np.stack([np.asarray(picture(seed)) for seed in range(FRAMES)])
    return frames, {
        "fps": 1.0, "total_num_frames": FRAMES, "frames_indices": list(range(FRAMES)), "duration": float(FRAMES),
        "video_backend": "opencv", "do_sample_frames": False,
    }

def whole_feature(config):
    processor = MULTIMODAL_REGISTRY.create_processor(config)
    prompt = processor.info.get_tokenizer().encode(get_model_cls(config).get_placeholder_str(modality, 1))
    items = processor.info.parse_mm_data({modality: [data()]})
    inputs = ProcessorInputs(prompt=prompt, mm_data_items=items, mm_uuid_items=None)
    made = processor.apply(inputs, TimingContext(enabled=False))
    return MultiModalFeatureSpec(
        made["mm_kwargs"][modality][0], modality, "k", made["mm_placeholders"][modality][0], "h"
    )

def embedded(model, feature):
    with torch.inference_mode():
        ((_, _, kwargs),) = group_and_batch_mm_kwargs([(feature.modality, feature.data)])
        (rows,) = model.embed_multimodal(**kwargs)
    assert len(rows) == feature.mm_position.get_num_embeds()
    return rows

args = AsyncEngineArgs(
    model=str(ensure_model(family)), trust_remote_code=True, max_model_len=8192, dtype="float32", enforce_eager=True
)
config = args.create_engine_config()
torch.accelerator.empty_cache = lambda: None  # as vLLM's own CPU worker does
with socket.socket() as free, set_current_vllm_config(config):
    free.bind(("127.0.0.1", 0))
    address = f"tcp://127.0.0.1:{free.getsockname()[1]}"
    free.close()
    init_distributed_environment(1, 0, address, 0, "gloo")
    initialize_model_parallel(1, 1)
    model = get_model(vllm_config=config)
    item = whole_feature(config.model_config)
    whole = embedded(model, item)
    found = {"rows": len(whole), "counts": {}}
    for asked in (2, 3, 4, 40):
        parts = [shard_features([item], index, asked, cuts_of(config.model_config))[0] for index in range(asked)]
        parts = [part for part in parts if part.mm_position.get_num_embeds()]
        joined = torch.cat([embedded(model, part) for part in parts])
        found["counts"][asked] = [len(parts), float((joined - whole).abs().max()), float(whole.abs().max())]
    print(json.dumps(found))
"""

EXACT, ROUNDED = 0.0, 1e-5
"""Largest difference: none, or that of sums in another order, where the kernels choose it by the size of a batch."""


@pytest.mark.parametrize(
    ("family", "modality", "size", "units", "tolerance"),
    [
        ("internvl2", "image", (900, 700), 13, EXACT),
        ("internvl2", "video", (240, 200), 9, EXACT),
        ("qwen2.5-vl", "video", (240, 200), 5, EXACT),
        ("minicpm-v-2.6", "image", (1000, 640), 9, ROUNDED),
        ("minicpm-v-2.6", "video", (240, 200), 9, ROUNDED),
    ],
)
def test_parts_make_up_the_whole(
    family: str, modality: str, size: tuple[int, int], units: int, tolerance: float
) -> None:
    found = run(family, modality, size)
    assert found["rows"] > units
    for asked, (parts, difference, largest) in found["counts"].items():
        assert parts == min(int(asked), units)
        assert difference <= tolerance
        assert largest > 1, "there is something to differ"


def test_an_image_whose_patches_attend_to_each_other_is_left_whole() -> None:
    found = run("qwen2.5-vl", "image", (448, 448))
    assert {parts for parts, _, _ in found["counts"].values()} == {1}


def run(family: str, modality: str, size: tuple[int, int]) -> dict[str, Any]:
    environment = os.environ | {"EPD_ROLE": "encode", "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", PROGRAM, family, modality, *map(str, size)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found
