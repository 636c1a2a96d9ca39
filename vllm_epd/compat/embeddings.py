# SPDX-License-Identifier: Apache-2.0
"""How large an embedding is, before there is one."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vllm.config import ModelConfig


def embedding_row_bytes(model_config: "ModelConfig") -> int:
    """Size of the vector that the encoder makes for one placeholder token.

    Qwen3-VL's encoder gives the language model's deeper layers vectors of their own, side by side with the first.
    """
    vision = getattr(model_config.hf_config, "vision_config", None)
    levels = 1 + len(getattr(vision, "deepstack_visual_indexes", None) or ())
    return int(model_config.get_inputs_embeds_size() * levels * model_config.dtype.itemsize)
