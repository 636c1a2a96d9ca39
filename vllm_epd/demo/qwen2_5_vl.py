# SPDX-License-Identifier: Apache-2.0
"""Qwen2.5-VL: dynamic resolution, 2 x 2 patches merged into one token, images and video."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vllm_epd.demo.files import write_json
from vllm_epd.demo.text import MAX_POSITIONS, TextModel, generation_config
from vllm_epd.demo.tokenizer import DemoTokenizer
from vllm_epd.demo.weights import Fills, linear, norm, write_weights

_TEXT = TextModel()
_DEPTH = 4
_HIDDEN = 128
_HEADS = 4
_INTERMEDIATE = 256
_PATCH = 14
_MERGE = 2
_FRAMES = 2
_CHANNELS = 3

_PROCESSING: Mapping[str, Any] = {
    "processor_class": "Qwen2_5_VLProcessor",
    "min_pixels": 4 * (_PATCH * _MERGE) ** 2,
    "max_pixels": 1280 * (_PATCH * _MERGE) ** 2,
    "patch_size": _PATCH,
    "temporal_patch_size": _FRAMES,
    "merge_size": _MERGE,
    "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_std": [0.26862954, 0.26130258, 0.27577711],
}

_VISION_START = "<|vision_start|>"
_VISION_END = "<|vision_end|>"
_IMAGE = "<|image_pad|>"
_VIDEO = "<|video_pad|>"

_CHAT_TEMPLATE = """\
{%- for message in messages -%}
<|im_start|>{{ message['role'] }}
{% if message['content'] is string -%}
{{ message['content'] }}
{%- else -%}
{%- for part in message['content'] -%}
{%- if part['type'] in ('image', 'image_url') -%}
<|vision_start|><|image_pad|><|vision_end|>
{%- elif part['type'] in ('video', 'video_url') -%}
<|vision_start|><|video_pad|><|vision_end|>
{%- elif part['type'] == 'text' -%}
{{ part['text'] }}
{%- endif -%}
{%- endfor -%}
{%- endif -%}
<|im_end|>
{% endfor -%}
{%- if add_generation_prompt -%}
<|im_start|>assistant
{% endif -%}
"""


def build(folder: Path, seed: int) -> None:
    """Write the model into an empty folder."""
    tokenizer = DemoTokenizer.train(_VISION_START, _VISION_END, _IMAGE, _VIDEO)
    tokenizer.write(folder, max_length=MAX_POSITIONS, chat_template=_CHAT_TEMPLATE)
    write_json(folder / "config.json", _config(tokenizer))
    write_json(folder / "generation_config.json", generation_config(tokenizer))
    image = {"image_processor_type": "Qwen2VLImageProcessor", **_PROCESSING}
    write_json(folder / "preprocessor_config.json", image)
    video = {"video_processor_type": "Qwen2VLVideoProcessor", **_PROCESSING}
    write_json(folder / "video_preprocessor_config.json", video)
    write_weights(folder, _TEXT.weights(tokenizer) | _vision_weights(), seed)


def _config(tokenizer: DemoTokenizer) -> dict[str, Any]:
    sections = [_TEXT.head_dim // 8, *[_TEXT.head_dim * 3 // 16] * 2]
    return {
        "architectures": ["Qwen2_5_VLForConditionalGeneration"],
        "model_type": "qwen2_5_vl",
        "image_token_id": tokenizer.id_of(_IMAGE),
        "video_token_id": tokenizer.id_of(_VIDEO),
        "vision_start_token_id": tokenizer.id_of(_VISION_START),
        "vision_end_token_id": tokenizer.id_of(_VISION_END),
        **_TEXT.config(tokenizer),
        "rope_scaling": {"type": "mrope", "mrope_section": sections},
        "vision_config": {
            "model_type": "qwen2_5_vl",
            "depth": _DEPTH,
            "hidden_size": _HIDDEN,
            "hidden_act": "silu",
            "intermediate_size": _INTERMEDIATE,
            "num_heads": _HEADS,
            "in_channels": _CHANNELS,
            "patch_size": _PATCH,
            "spatial_merge_size": _MERGE,
            "temporal_patch_size": _FRAMES,
            "tokens_per_second": 2,
            "window_size": 8 * _PATCH,
            "fullatt_block_indexes": [1, 3],
            "out_hidden_size": _TEXT.hidden,
        },
    }


def _vision_weights() -> Fills:
    merged = _HIDDEN * _MERGE**2
    fills = {
        **linear("visual.patch_embed.proj", _HIDDEN, _CHANNELS, _FRAMES, _PATCH, _PATCH, bias=False),
        **norm("visual.merger.ln_q", _HIDDEN, bias=False),
        **linear("visual.merger.mlp.0", merged, merged),
        **linear("visual.merger.mlp.2", _TEXT.hidden, merged, gain=1.5),
    }
    for index in range(_DEPTH):
        fills |= _block(f"visual.blocks.{index}")
    return fills


def _block(name: str) -> Fills:
    return {
        **norm(f"{name}.norm1", _HIDDEN, bias=False),
        **linear(f"{name}.attn.qkv", 3 * _HIDDEN, _HIDDEN, gain=1.5),
        **linear(f"{name}.attn.proj", _HIDDEN, _HIDDEN),
        **norm(f"{name}.norm2", _HIDDEN, bias=False),
        **linear(f"{name}.mlp.gate_proj", _INTERMEDIATE, _HIDDEN),
        **linear(f"{name}.mlp.up_proj", _INTERMEDIATE, _HIDDEN),
        **linear(f"{name}.mlp.down_proj", _HIDDEN, _INTERMEDIATE),
    }
