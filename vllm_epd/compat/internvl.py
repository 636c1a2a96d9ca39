# SPDX-License-Identifier: Apache-2.0
"""InternVL with items that consist of metadata alone.

vLLM's InternVL parser declares no `embedding_fields`, so a consumer could not size the placeholder of an image that
another instance encodes. The number of tiles does: each gives the same number of tokens.
"""

from collections.abc import Mapping
from typing import Any

import torch
from vllm.model_executor.models.internvl import (
    InternVLChatModel,
    InternVLDummyInputsBuilder,
    InternVLMultiModalProcessor,
    InternVLProcessingInfo,
)
from vllm.multimodal import MULTIMODAL_REGISTRY
from vllm.multimodal.inputs import MultiModalFieldConfig
from vllm.multimodal.parse import DictEmbeddingItems, MultiModalDataItems, MultiModalDataParser
from vllm.multimodal.processing import PromptReplacement

COUNTS = frozenset({"image_num_patches", "video_num_patches"})


def _image_fields(data: Mapping[str, torch.Tensor]) -> dict[str, MultiModalFieldConfig]:
    return {
        "image_embeds": MultiModalFieldConfig.batched("image"),
        "image_num_patches": MultiModalFieldConfig.batched("image", keep_on_cpu=True),
    }


def _video_fields(data: Mapping[str, torch.Tensor]) -> dict[str, MultiModalFieldConfig]:
    return {
        "video_embeds": MultiModalFieldConfig.batched("video"),
        "video_num_patches": MultiModalFieldConfig.batched("video", keep_on_cpu=True),
    }


def _flat_counts(data: Mapping[str, Any]) -> dict[str, Any]:
    """`data` with one number per item; the chat API makes a row of each item's one number."""
    counts = {name: value.reshape(-1) for name, value in data.items() if name in COUNTS}
    return {**data, **counts}


class EPDInternVLDataParser(MultiModalDataParser):
    """Accepts a number of tiles in place of an image, and a number of frames in place of a video."""

    embedding_fields = {
        "image": {"image_embeds": "values", "image_num_patches": "metadata"},
        "video": {"video_embeds": "values", "video_num_patches": "metadata"},
    }

    def _parse_image_data(self, data: Any) -> Any:
        return self._items(data, "image", _image_fields) or super()._parse_image_data(data)

    def _parse_video_data(self, data: Any) -> Any:
        return self._items(data, "video", _video_fields) or super()._parse_video_data(data)

    def _items(self, data: Any, modality: str, fields_factory: Any) -> DictEmbeddingItems | None:
        if not isinstance(data, dict):
            return None
        required, optional = self.embedding_field_sets(modality)
        return DictEmbeddingItems(
            _flat_counts(data),
            modality,
            required_fields=required,
            optional_fields=optional,
            fields_factory=fields_factory,
        )


class EPDInternVLProcessingInfo(InternVLProcessingInfo):
    """InternVL's processing with our parser."""

    def get_data_parser(self) -> MultiModalDataParser:
        """Our parser, set up as vLLM's own."""
        return EPDInternVLDataParser(
            expected_hidden_size=self._get_expected_hidden_size(),
            allow_missing_mm_embeddings=self.allow_missing_mm_embeddings,
        )


class EPDInternVLMultiModalProcessor(InternVLMultiModalProcessor):
    """InternVL's processor, which sizes the placeholder of a metadata-only image by its number of tiles."""

    def _get_mm_fields_config(
        self, hf_inputs: Mapping[str, Any], hf_processor_mm_kwargs: Mapping[str, object]
    ) -> Mapping[str, MultiModalFieldConfig]:
        fields: Mapping[str, MultiModalFieldConfig] = super()._get_mm_fields_config(
            _flat_counts(hf_inputs), hf_processor_mm_kwargs
        )
        return fields

    def _get_prompt_repl_image(
        self, mm_items: MultiModalDataItems, hf_processor: Any, out_mm_data: Any
    ) -> PromptReplacement:
        replacement = super()._get_prompt_repl_image(mm_items, hf_processor, out_mm_data)
        if "image" not in mm_items or not isinstance(mm_items["image"], DictEmbeddingItems):
            return replacement
        tiles = [int(count) for count in out_mm_data["image_num_patches"]]
        return PromptReplacement(
            modality="image",
            target=replacement.target,
            replacement=lambda item_index: hf_processor.get_image_repl(tiles[item_index]),
        )


@MULTIMODAL_REGISTRY.register_processor(
    EPDInternVLMultiModalProcessor,
    info=EPDInternVLProcessingInfo,
    dummy_inputs=InternVLDummyInputsBuilder,
)
class EPDInternVLChatModel(InternVLChatModel):
    """The model itself, unchanged."""
