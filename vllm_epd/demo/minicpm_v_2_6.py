# SPDX-License-Identifier: Apache-2.0
"""MiniCPM-V 2.6: an overview and slices of the picture, each resampled to the same number of tokens."""

from pathlib import Path
from typing import Any

from vllm_epd.demo.files import copy_remote_code, write_json
from vllm_epd.demo.text import MAX_POSITIONS, TextModel, generation_config
from vllm_epd.demo.tokenizer import DemoTokenizer
from vllm_epd.demo.weights import Fill, Fills, linear, matrix, norm, write_weights

_TEXT = TextModel()
_DEPTH = 4
_HIDDEN = 128
_HEADS = 4
_INTERMEDIATE = 256
_SLICE = 224
_MAX_SLICES = 9
_PATCH = 14
_POSITIONS_PER_SIDE = 32
_QUERIES = 32
_CHANNELS = 3

_SPECIAL_TOKENS = ("<unk>", "<image>", "</image>", "<slice>", "</slice>", "<image_id>", "</image_id>")
_CONFIGURATION = "configuration_minicpm"
_IMAGE_PROCESSING = "image_processing_minicpmv"


def build(folder: Path, seed: int) -> None:
    """Write the model into an empty folder."""
    tokenizer = DemoTokenizer.train(*_SPECIAL_TOKENS)
    tokenizer.write(folder, max_length=MAX_POSITIONS, unknown_token="<unk>")
    copy_remote_code(folder, _CONFIGURATION, _IMAGE_PROCESSING)
    write_json(folder / "config.json", _config(tokenizer))
    write_json(folder / "generation_config.json", generation_config(tokenizer))
    write_json(folder / "preprocessor_config.json", _image_processor())
    fills = _TEXT.weights(tokenizer, "llm.") | _vision_weights() | _resampler_weights()
    write_weights(folder, fills, seed)


def _config(tokenizer: DemoTokenizer) -> dict[str, Any]:
    return {
        "architectures": ["MiniCPMV"],
        "model_type": "minicpmv",
        "version": 2.6,
        "auto_map": {"AutoConfig": f"{_CONFIGURATION}.MiniCPMVConfig"},
        **_TEXT.config(tokenizer),
        "image_size": _SLICE,
        "max_slice_num": _MAX_SLICES,
        "query_num": _QUERIES,
        "drop_vision_last_layer": False,
        "vision_config": {
            "model_type": "siglip_vision_model",
            "hidden_act": "gelu_pytorch_tanh",
            "hidden_size": _HIDDEN,
            "image_size": _POSITIONS_PER_SIDE * _PATCH,
            "intermediate_size": _INTERMEDIATE,
            "layer_norm_eps": 1e-6,
            "num_attention_heads": _HEADS,
            "num_channels": _CHANNELS,
            "num_hidden_layers": _DEPTH,
            "patch_size": _PATCH,
        },
    }


def _image_processor() -> dict[str, Any]:
    return {
        "image_processor_type": "MiniCPMVImageProcessor",
        "auto_map": {"AutoImageProcessor": f"{_IMAGE_PROCESSING}.MiniCPMVImageProcessor"},
        # vLLM's own class of that name, which it prefers to one in the model's folder.
        "processor_class": "MiniCPMVProcessor",
        "max_slice_nums": _MAX_SLICES,
        "scale_resolution": _SLICE,
        "patch_size": _PATCH,
        "image_feature_size": _QUERIES,
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.5, 0.5, 0.5],
    }


def _vision_weights() -> Fills:
    fills = {
        **linear("vpm.embeddings.patch_embedding", _HIDDEN, _CHANNELS, _PATCH, _PATCH),
        "vpm.embeddings.position_embedding.weight": Fill((_POSITIONS_PER_SIDE**2, _HIDDEN), 0.5),
        **norm("vpm.post_layernorm", _HIDDEN),
    }
    for index in range(_DEPTH):
        fills |= _layer(f"vpm.encoder.layers.{index}")
    return fills


def _layer(name: str) -> Fills:
    return {
        **norm(f"{name}.layer_norm1", _HIDDEN),
        **linear(f"{name}.self_attn.q_proj", _HIDDEN, _HIDDEN, gain=1.5),
        **linear(f"{name}.self_attn.k_proj", _HIDDEN, _HIDDEN, gain=1.5),
        **linear(f"{name}.self_attn.v_proj", _HIDDEN, _HIDDEN),
        **linear(f"{name}.self_attn.out_proj", _HIDDEN, _HIDDEN),
        **norm(f"{name}.layer_norm2", _HIDDEN),
        **linear(f"{name}.mlp.fc1", _INTERMEDIATE, _HIDDEN),
        **linear(f"{name}.mlp.fc2", _HIDDEN, _INTERMEDIATE),
    }


def _resampler_weights() -> Fills:
    size = _TEXT.hidden
    return {
        "resampler.query": Fill((_QUERIES, size), 1.0),
        **linear("resampler.kv_proj", size, _HIDDEN, bias=False),
        "resampler.attn.in_proj_weight": matrix(3 * size, size, gain=1.5),
        "resampler.attn.in_proj_bias": Fill((3 * size,), 0.1),
        **linear("resampler.attn.out_proj", size, size),
        **norm("resampler.ln_q", size),
        **norm("resampler.ln_kv", size),
        **norm("resampler.ln_post", size),
        "resampler.proj": matrix(size, size),
    }
