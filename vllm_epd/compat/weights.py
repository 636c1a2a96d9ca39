# SPDX-License-Identifier: Apache-2.0
"""How many bytes of a checkpoint belong to the encoders, and how many to the language model."""

import json
import logging
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING

from vllm_epd.compat.fingerprint import HEADER_LIMIT, model_folder

if TYPE_CHECKING:
    from vllm.config import VllmConfig


logger = logging.getLogger(__name__)

TOWER_PREFIXES = (
    "visual",
    "vision_model",
    "vision_tower",
    "vpm",
    "resampler",
    "mlp1",
    "multi_modal_projector",
    "audio_tower",
    "audio_model",
    "apm",
)
"""First parts of the names of encoder weights in the checkpoints of the supported families."""


@dataclass(frozen=True, slots=True)
class WeightBytes:
    """Bytes of a model's two parts, in the dtype in which it is served."""

    tower: int
    language_model: int


def weight_bytes(vllm_config: "VllmConfig") -> WeightBytes | None:
    """Count from the headers of the safetensors files; None where there are none."""
    model = vllm_config.model_config
    folder = model_folder(model.model, model.revision)
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        return None
    tower = language = 0
    for path in files:
        for name, elements in _elements(path).items():
            nbytes = elements * model.dtype.itemsize
            if any(part in TOWER_PREFIXES for part in name.split(".")[:3]):
                tower += nbytes
            else:
                language += nbytes
    return WeightBytes(tower, language)


def log_saved_weights(vllm_config: "VllmConfig", *, tower: bool, language_model: bool) -> None:
    """Log what an instance leaves out that holds only `tower`, only `language_model`, or both."""
    total = weight_bytes(vllm_config)
    if total is None or (tower and language_model):
        return
    part, saved = ("language model", total.language_model) if tower else ("encoders", total.tower)
    logger.info(
        "weights of the %s are left out: %.1f of %.1f MiB saved",
        part,
        saved / 2**20,
        (total.tower + total.language_model) / 2**20,
    )


def _elements(path: Path) -> dict[str, int]:
    with path.open("rb") as file:
        size = min(int.from_bytes(file.read(8), "little"), HEADER_LIMIT)
        header = json.loads(file.read(size))
    return {name: prod(entry["shape"]) for name, entry in header.items() if name != "__metadata__"}
