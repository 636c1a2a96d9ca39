# SPDX-License-Identifier: Apache-2.0
"""How the encoder input of one item is cut into units that the encoder treats each by itself.

That holds where no layer looks from one unit to another and no position counts across them, as read in the models'
code: InternVL sees each tile alone; Qwen2.5-VL attends within one temporal step, and its rotary positions are height
and width; MiniCPM-V 2.6 masks out what lies beside a slice. `tests/contract/test_cuts.py` compares parts with wholes.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from vllm.config import ModelConfig

Fields = Mapping[str, Any]
"""What the processor has made of an item, by name."""


@dataclass(frozen=True, slots=True)
class Cut:
    """How the items of one modality of a model are cut.

    Attributes:
        pixels: the field that holds what the encoder reads.
        fields: all fields of an item; one that has others is left whole.
        units: how many units an item has.
        take: the fields that a run of units, from the first up to before the last, has otherwise than the item.
    """

    pixels: str
    fields: frozenset[str]
    units: Callable[[Fields], int]
    take: Callable[[Fields, int, int], dict[str, Any]]


def cuts_of(model_config: "ModelConfig") -> Mapping[str, Cut]:
    """By modality, what can be cut of the items of a model."""
    multimodal = model_config.multimodal_config
    if multimodal is None or multimodal.video_pruning_rate:  # which frames are left out depends on all of them
        return {}
    if model_config.architecture == "MiniCPMV" and model_config.hf_config.version != MASKED_MINICPM:
        return {}
    return CUTS.get(model_config.architecture, {})


def _tiles(pixels: str, count: str, token: str) -> Cut:
    """Tiles of equal size, one after the other."""

    def take(item: Fields, first: int, last: int) -> dict[str, Any]:
        return {pixels: item[pixels][first:last], count: torch.full_like(item[count], last - first)}

    return Cut(pixels, frozenset({pixels, count, token}), lambda item: int(item[count]), take)


def _steps(pixels: str, grid: str, seconds: str) -> Cut:
    """Temporal steps of a video, each a grid of patches of the same size."""

    def take(item: Fields, first: int, last: int) -> dict[str, Any]:
        patches = int(item[grid][1:].prod())
        shape = item[grid].clone()
        shape[0] = last - first
        return {pixels: item[pixels][first * patches : last * patches], grid: shape}

    return Cut(pixels, frozenset({pixels, grid, seconds}), lambda item: int(item[grid][0]), take)


def _slices(pixels: str, sizes: str, original: str) -> Cut:
    """Slices of sizes of their own, each resampled to the same number of rows."""

    def take(item: Fields, first: int, last: int) -> dict[str, Any]:
        return {pixels: item[pixels][first:last], sizes: item[sizes][first:last]}

    return Cut(pixels, frozenset({pixels, sizes, original}), lambda item: len(item[pixels]), take)


MASKED_MINICPM = 2.6
"""The version of MiniCPM-V whose encoder masks out the padding of smaller slices."""

CUTS: Mapping[str, Mapping[str, Cut]] = {
    "InternVLChatModel": {
        "image": _tiles("pixel_values_flat", "image_num_patches", "image_token_id"),
        "video": _tiles("pixel_values_flat_video", "video_num_patches", "video_token_id"),
    },
    "Qwen2_5_VLForConditionalGeneration": {
        "video": _steps("pixel_values_videos", "video_grid_thw", "second_per_grid_ts"),
    },
    "MiniCPMV": {
        "image": _slices("pixel_values", "tgt_sizes", "image_sizes"),
        "video": _slices("video_pixel_values", "video_tgt_sizes", "video_image_sizes"),
    },
}
"""By architecture and modality; what is not here is encoded as one."""
