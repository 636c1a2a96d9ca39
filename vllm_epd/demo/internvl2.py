# SPDX-License-Identifier: Apache-2.0
"""InternVL2, in the form of its 1B member: InternViT on tiles of a fixed size, and a Qwen2 language model."""

from pathlib import Path
from typing import Any

from vllm_epd.demo.files import copy_remote_code, write_json
from vllm_epd.demo.text import MAX_POSITIONS, TextModel, generation_config
from vllm_epd.demo.tokenizer import DemoTokenizer
from vllm_epd.demo.weights import Fill, Fills, linear, norm, write_weights

_TEXT = TextModel()
_DEPTH = 4
_HIDDEN = 128
_HEADS = 4
_INTERMEDIATE = 256
_TILE = 112
_PATCH = 14
_MAX_TILES = 12
_DOWNSAMPLE = 2
_CHANNELS = 3

# The last one is what vLLM looks for before it accepts video.
_SPECIAL_TOKENS = ("<img>", "</img>", "<IMG_CONTEXT>", "<|video_pad|>")
_CONFIGURATION = "configuration_internvl_chat"


def build(folder: Path, seed: int) -> None:
    """Write the model into an empty folder."""
    tokenizer = DemoTokenizer.train(*_SPECIAL_TOKENS)
    tokenizer.write(folder, max_length=MAX_POSITIONS)
    copy_remote_code(folder, _CONFIGURATION)
    write_json(folder / "config.json", _config(tokenizer))
    write_json(folder / "generation_config.json", generation_config(tokenizer))
    fills = _TEXT.weights(tokenizer, "language_model.") | _vision_weights() | _connector_weights()
    write_weights(folder, fills, seed)


def _config(tokenizer: DemoTokenizer) -> dict[str, Any]:
    return {
        "architectures": ["InternVLChatModel"],
        "model_type": "internvl_chat",
        "auto_map": {"AutoConfig": f"{_CONFIGURATION}.InternVLChatConfig"},
        "dtype": "float32",
        "tie_word_embeddings": False,
        "downsample_ratio": 1 / _DOWNSAMPLE,
        "dynamic_image_size": True,
        "force_image_size": _TILE,
        "max_dynamic_patch": _MAX_TILES,
        "min_dynamic_patch": 1,
        "ps_version": "v2",
        "select_layer": -1,
        "use_thumbnail": True,
        "llm_config": {
            "architectures": ["Qwen2ForCausalLM"],
            "model_type": "qwen2",
            **_TEXT.config(tokenizer),
        },
        "vision_config": {
            "model_type": "intern_vit_6b",
            "hidden_act": "gelu",
            "hidden_size": _HIDDEN,
            "image_size": _TILE,
            "initializer_factor": 1.0,
            "intermediate_size": _INTERMEDIATE,
            "layer_norm_eps": 1e-6,
            "norm_type": "layer_norm",
            "num_attention_heads": _HEADS,
            "num_channels": _CHANNELS,
            "num_hidden_layers": _DEPTH,
            "patch_size": _PATCH,
            "qk_normalization": False,
            "qkv_bias": True,
        },
    }


def _vision_weights() -> Fills:
    name = "vision_model.embeddings"
    positions = (_TILE // _PATCH) ** 2 + 1
    fills = {
        f"{name}.class_embedding": Fill((1, 1, _HIDDEN), 0.5),
        f"{name}.position_embedding": Fill((1, positions, _HIDDEN), 0.5),
        **linear(f"{name}.patch_embedding", _HIDDEN, _CHANNELS, _PATCH, _PATCH),
    }
    for index in range(_DEPTH):
        fills |= _layer(f"vision_model.encoder.layers.{index}")
    return fills


def _layer(name: str) -> Fills:
    return {
        **norm(f"{name}.norm1", _HIDDEN),
        **linear(f"{name}.attn.qkv", 3 * _HIDDEN, _HIDDEN, gain=1.5),
        **linear(f"{name}.attn.proj", _HIDDEN, _HIDDEN),
        f"{name}.ls1": Fill((_HIDDEN,), 0.1, mean=1.0),
        **norm(f"{name}.norm2", _HIDDEN),
        **linear(f"{name}.mlp.fc1", _INTERMEDIATE, _HIDDEN),
        **linear(f"{name}.mlp.fc2", _HIDDEN, _INTERMEDIATE),
        f"{name}.ls2": Fill((_HIDDEN,), 0.1, mean=1.0),
    }


def _connector_weights() -> Fills:
    merged = _HIDDEN * _DOWNSAMPLE**2
    return {
        **norm("mlp1.0", merged),
        **linear("mlp1.1", _TEXT.hidden, merged),
        **linear("mlp1.3", _TEXT.hidden, _TEXT.hidden, gain=1.5),
    }
