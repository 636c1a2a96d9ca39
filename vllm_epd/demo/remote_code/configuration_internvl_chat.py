# SPDX-License-Identifier: Apache-2.0
"""Configuration of an InternVL chat model."""

from typing import Any

from transformers import PreTrainedConfig, Qwen2Config


class InternVisionConfig(PreTrainedConfig):
    """Configuration of the InternViT encoder; all its fields come from `config.json`."""

    model_type = "intern_vit_6b"
    base_config_key = "vision_config"


class InternVLChatConfig(PreTrainedConfig):
    """An InternViT encoder, a projector and a Qwen2 language model."""

    model_type = "internvl_chat"
    sub_configs = {"vision_config": InternVisionConfig, "llm_config": Qwen2Config}

    vision_config: dict[str, Any] | PreTrainedConfig | None = None
    llm_config: dict[str, Any] | PreTrainedConfig | None = None

    def __post_init__(self, **kwargs: object) -> None:
        if not isinstance(self.vision_config, PreTrainedConfig):
            self.vision_config = InternVisionConfig(**self.vision_config or {})
        if not isinstance(self.llm_config, PreTrainedConfig):
            self.llm_config = Qwen2Config(**self.llm_config or {})
        super().__post_init__(**kwargs)
