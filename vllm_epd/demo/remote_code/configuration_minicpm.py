# SPDX-License-Identifier: Apache-2.0
"""Configuration of a MiniCPM-V model."""

from typing import Any

from transformers import PreTrainedConfig, Qwen2Config, SiglipVisionConfig


class MiniCPMVConfig(Qwen2Config):
    """A Qwen2 configuration, with the vision encoder's beside it."""

    model_type = "minicpmv"
    sub_configs = {"vision_config": SiglipVisionConfig}

    vision_config: dict[str, Any] | PreTrainedConfig | None = None

    def __post_init__(self, **kwargs: object) -> None:
        if not isinstance(self.vision_config, PreTrainedConfig):
            self.vision_config = SiglipVisionConfig(**self.vision_config or {})
        super().__post_init__(**kwargs)
