# SPDX-License-Identifier: Apache-2.0
"""Qwen2.5-VL with videos that consist of metadata alone.

vLLM's parser asks for no more than the grid of a video, which sizes its placeholder. The positions of its tokens also
depend on how many seconds lie between two temporal steps; without these, prefill takes every video for one of a step
per second.
"""

from collections.abc import Mapping
from typing import Any

import torch
from vllm.model_executor.models.qwen2_5_vl import (
    Qwen2_5_VLDummyInputsBuilder,
    Qwen2_5_VLMultiModalProcessor,
    Qwen2_5_VLProcessingInfo,
)
from vllm.model_executor.models.qwen2_5_vl import Qwen2_5_VLForConditionalGeneration as _Model
from vllm.model_executor.models.qwen2_vl import Qwen2VLMultiModalDataParser, _create_qwen2vl_field_factory
from vllm.multimodal import MULTIMODAL_REGISTRY
from vllm.multimodal.inputs import MultiModalFieldConfig
from vllm.multimodal.parse import DictEmbeddingItems, MultiModalDataParser

SECONDS = "second_per_grid_ts"


class EPDQwenDataParser(Qwen2VLMultiModalDataParser):
    """Asks for the seconds of a temporal step beside the grid of a video."""

    embedding_fields = {
        **Qwen2VLMultiModalDataParser.embedding_fields,
        "video": {**Qwen2VLMultiModalDataParser.embedding_fields["video"], SECONDS: "metadata"},
    }

    def _parse_video_data(self, data: Any) -> Any:
        if not isinstance(data, dict):
            return super()._parse_video_data(data)
        required, optional = self.embedding_field_sets("video")
        return DictEmbeddingItems(
            data,
            modality="video",
            required_fields=required,
            optional_fields=optional,
            fields_factory=self._video_fields,
        )

    def _video_fields(self, data: Mapping[str, torch.Tensor]) -> Mapping[str, MultiModalFieldConfig]:
        seconds = MultiModalFieldConfig.batched("video", keep_on_cpu=True)
        return {**_create_qwen2vl_field_factory(self._spatial_merge_size)(data), SECONDS: seconds}


class EPDQwenProcessingInfo(Qwen2_5_VLProcessingInfo):
    """Qwen2.5-VL's processing with our parser."""

    def get_data_parser(self) -> MultiModalDataParser:
        """Our parser, set up as vLLM's own."""
        return EPDQwenDataParser(
            self.get_hf_config().vision_config.spatial_merge_size,
            video_needs_metadata=True,
            expected_hidden_size=self._get_expected_hidden_size(),
            allow_missing_mm_embeddings=self.allow_missing_mm_embeddings,
        )


@MULTIMODAL_REGISTRY.register_processor(
    Qwen2_5_VLMultiModalProcessor,
    info=EPDQwenProcessingInfo,
    dummy_inputs=Qwen2_5_VLDummyInputsBuilder,
)
class Qwen2_5_VLForConditionalGeneration(_Model):  # noqa: N801
    """The model itself, unchanged, and under the name by which vLLM's speculative decoding knows it."""
