# SPDX-License-Identifier: Apache-2.0
"""What the files of a model say: how it takes images, and how many bytes its parts and caches have."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vllm_epd.errors import ConfigError
from vllm_epd.planner.profile.profile import Memory, Native, Tiled

ENCODERS = ("visual.", "model.visual.", "vision_model.", "mlp1.", "vpm.", "resampler.")
"""How the names of an encoder's tensors begin, and of what projects its output."""

DTYPE_BYTES = {"float32": 4, "torch.float32": 4}
"""Of a number; 2 for all others."""


@dataclass(frozen=True, slots=True)
class Architecture:
    """A model, as its files describe it.

    Attributes:
        name: of the kind of model.
        media: what images and videos become.
        encoder_bytes: weights of the encoder.
        language_bytes: weights of all else.
        kv_per_token: bytes of keys and values.
        embedding_per_token: bytes.
        encode_per_patch: bytes of pixels and activations, at the widest point of a layer.
        prefill_per_token: the same of activations.
    """

    name: str
    media: Tiled | Native
    encoder_bytes: int
    language_bytes: int
    kv_per_token: int
    embedding_per_token: int
    encode_per_patch: int
    prefill_per_token: int

    def memory(self, reserved: int, max_context: int) -> Memory:
        """The same as bounds of a device."""
        return Memory(
            encoder=self.encoder_bytes,
            language=self.language_bytes,
            kv_per_token=self.kv_per_token,
            embedding_per_token=self.embedding_per_token,
            encode_per_patch=self.encode_per_patch,
            prefill_per_token=self.prefill_per_token,
            reserved=reserved,
            max_context=max_context,
        )


def read_architecture(folder: Path, dtype: str | None = None) -> Architecture:
    """Read the configuration of a model, and the sizes of its weights.

    Args:
        folder: of the model, as transformers saves it.
        dtype: of the instance, where it is known; otherwise that of the configuration.

    Raises:
        ConfigError: no such folder, or a kind of model whose media are not known.
    """
    config = _read(folder / "config.json")
    text = config.get("llm_config") or config.get("text_config") or config
    number = DTYPE_BYTES.get(str(dtype or text.get("dtype") or config.get("dtype")), 2)
    heads = int(text["num_attention_heads"])
    head = int(text.get("head_dim") or text["hidden_size"] // heads)
    encoder, language = _weights(folder)
    return Architecture(
        name=str(config["model_type"]),
        media=_media(folder, config),
        encoder_bytes=encoder,
        language_bytes=language,
        kv_per_token=2 * int(text["num_hidden_layers"]) * int(text.get("num_key_value_heads") or heads) * head * number,
        embedding_per_token=int(text["hidden_size"]) * number,
        encode_per_patch=_working(config["vision_config"]) * number,
        prefill_per_token=_working(text) * number,
    )


def _media(folder: Path, config: Mapping[str, Any]) -> Tiled | Native:
    kind = str(config["model_type"])
    if kind in ("qwen2_vl", "qwen2_5_vl"):
        return _qwen(config["vision_config"], _read(folder / "preprocessor_config.json"))
    if kind == "internvl_chat":
        return _internvl(config)
    if kind == "minicpmv":
        return _minicpm(_read(folder / "preprocessor_config.json"))
    known = "qwen2_vl, qwen2_5_vl, internvl_chat and minicpmv"
    raise ConfigError(f"{folder} is a model of the kind {kind!r}; what its media become is known of {known}")


def _qwen(vision: Mapping[str, Any], processor: Mapping[str, Any]) -> Native:
    size = processor.get("size", {})
    whole = vision.get("fullatt_block_indexes", ())
    return Native(
        patch=int(processor["patch_size"]),
        merge=int(processor["merge_size"]),
        least_pixels=int(processor.get("min_pixels") or size["shortest_edge"]),
        most_pixels=int(processor.get("max_pixels") or size["longest_edge"]),
        window=int(vision.get("window_size", 0)),
        whole=len(whole) / int(vision["depth"]) if whole else 0.0,
        frames_together=int(processor.get("temporal_patch_size", 2)),
    )


def _internvl(config: Mapping[str, Any]) -> Tiled:
    tile, patch = int(config["force_image_size"]), int(config["vision_config"]["patch_size"])
    return Tiled(
        rule="aspect",
        tile=tile,
        patch=patch,
        most=int(config["max_dynamic_patch"]),
        thumbnail=bool(config["use_thumbnail"]),
        tokens=round((tile // patch * float(config["downsample_ratio"])) ** 2),
        extra=2,
        frame_extra=6,
    )


def _minicpm(processor: Mapping[str, Any]) -> Tiled:
    return Tiled(
        rule="area",
        tile=int(processor["scale_resolution"]),
        patch=int(processor["patch_size"]),
        most=int(processor["max_slice_nums"]),
        thumbnail=True,
        tokens=int(processor["image_feature_size"]),
        extra=3,
        tile_extra=2,
        row_extra=1,
    )


def _working(part: Mapping[str, Any]) -> int:
    """Numbers at once for a patch or token: residual, input and queries, keys, values, or the feed-forward part."""
    hidden, patch = int(part["hidden_size"]), int(part.get("patch_size", 0))
    return 2 * hidden + max(3 * hidden, 2 * int(part["intermediate_size"])) + 3 * patch**2


def _weights(folder: Path) -> tuple[int, int]:
    """Bytes of the encoder and of all else, by the headers of the files."""
    encoder = total = 0
    for path in sorted(folder.glob("*.safetensors")):
        with path.open("rb") as file:
            header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
        for name, tensor in header.items():
            if name != "__metadata__":
                begin, end = tensor["data_offsets"]
                total += end - begin
                encoder += (end - begin) * name.startswith(ENCODERS)
    return encoder, total - encoder


def _read(path: Path) -> dict[str, Any]:
    try:
        found: dict[str, Any] = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"cannot read {path}: {error}; name the folder of the model with --folder, it says what images become"
        ) from error
    return found
