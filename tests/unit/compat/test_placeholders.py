# SPDX-License-Identifier: Apache-2.0
"""What E publishes of an item sizes the same placeholder on P that the item itself sizes on a whole server."""

import json
import os
import subprocess
import sys
from typing import Any

import pytest

from vllm_epd.demo import FAMILIES

pytest.importorskip("vllm")

PROGRAM = """
import io, json, sys
import numpy as np
from PIL import Image
from types import SimpleNamespace
from vllm import AsyncEngineArgs
from vllm.distributed.ec_transfer.ec_connector.utils import PlaceholderMetadataResolver
from vllm.multimodal import MULTIMODAL_REGISTRY
from vllm.multimodal.processing.context import TimingContext
from vllm.multimodal.processing.inputs import ProcessorInputs
from vllm.renderers.chat_utils import _get_embeds_data
from vllm_epd.compat.metadata import describe_items
from vllm_epd.demo import demo_image, ensure_model
from vllm_epd.plugin import register

register()
family = sys.argv[1]
SIZES = [(448, 448), (640, 360), (100, 300)]

def model_config(tower):
    limits = {} if tower else {"limit_mm_per_prompt": {"image": 0, "video": 0}}
    model = str(ensure_model(family))
    args = AsyncEngineArgs(model=model, trust_remote_code=True, max_model_len=8192, dtype="float32", **limits)
    config = args.create_model_config()
    config.multimodal_config.enable_mm_embeds = not tower
    config.multimodal_config.allow_missing_mm_embeddings = not tower
    return config

def apply(processor, prompt, items, uuids):
    inputs = ProcessorInputs(prompt=prompt, mm_data_items=items, mm_uuid_items=uuids)
    return processor.apply(inputs, TimingContext(enabled=False))

def placeholders(result):
    return [[p.offset, p.length, p.get_num_embeds()] for p in result["mm_placeholders"]["image"]]

config = model_config(True)
encoder = MULTIMODAL_REGISTRY.create_processor(config)
from vllm.model_executor.model_loader import get_model_cls
text = "".join(get_model_cls(config).get_placeholder_str("image", n + 1) + " and " for n in range(len(SIZES)))
prompt = encoder.info.get_tokenizer().encode(text)
images = [Image.open(io.BytesIO(demo_image(n, *size))).convert("RGB") for n, size in enumerate(SIZES)]
resolver = PlaceholderMetadataResolver(config)

published = []
for n, image in enumerate(images):
    alone = encoder.info.get_tokenizer().encode(get_model_cls(config).get_placeholder_str("image", 1))
    result = apply(encoder, alone, encoder.info.parse_mm_data({"image": [image]}), None)
    feature = SimpleNamespace(
        identifier=str(n), modality="image", data=result["mm_kwargs"]["image"][0],
        mm_position=result["mm_placeholders"]["image"][0],
    )
    published.append(json.loads(json.dumps(describe_items([feature], resolver)[str(n)]["metadata"])))

whole = apply(encoder, prompt, encoder.info.parse_mm_data({"image": images}), None)
consumer = MULTIMODAL_REGISTRY.create_processor(model_config(False))
items = consumer.info.parse_mm_data({"image": _get_embeds_data("image", published, consumer)})
split = apply(consumer, prompt, items, {"image": ["a", "b", "c"]})
print(json.dumps({
    "published": published, "whole": placeholders(whole), "split": placeholders(split),
    "same_tokens": whole["prompt_token_ids"] == split["prompt_token_ids"], "keys": split["mm_hashes"]["image"],
}))
"""


@pytest.mark.parametrize("family", FAMILIES)
def test_metadata_alone_sizes_the_same_placeholders(family: str) -> None:
    environment = os.environ | {"EPD_ROLE": "encode", "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-c", PROGRAM, family]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    assert all(result["published"]), "every image comes with what sizes it"
    assert len({json.dumps(each) for each in result["published"]}) > 1, "images of other sizes differ"
    assert result["split"] == result["whole"]
    assert result["same_tokens"]
    assert result["keys"] == ["a", "b", "c"]
