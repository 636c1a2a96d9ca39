# SPDX-License-Identifier: Apache-2.0
"""The Qwen2 language model that every demo family has in common."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from vllm_epd.demo.tokenizer import DemoTokenizer
from vllm_epd.demo.weights import Fill, Fills, linear, matrix, norm

MAX_POSITIONS = 8192

# Chosen so that an answer depends on every picture of the prompt, and rounding does not change it: attention
# that picks out tokens instead of averaging them, embeddings that do not outweigh the layers, wide logits.
_ATTENTION_GAIN = 2.0
_EMBEDDING_STD = 0.3
_LOGIT_GAIN = 8.0


@dataclass(frozen=True, slots=True)
class TextModel:
    """Sizes of the language model."""

    hidden: int = 256
    layers: int = 4
    heads: int = 4
    kv_heads: int = 2
    intermediate: int = 512

    @property
    def head_dim(self) -> int:
        """Channels of one attention head."""
        return self.hidden // self.heads

    def config(self, tokenizer: DemoTokenizer) -> dict[str, Any]:
        """The fields of a Qwen2 configuration."""
        return {
            "vocab_size": tokenizer.size,
            "hidden_size": self.hidden,
            "intermediate_size": self.intermediate,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.kv_heads,
            "hidden_act": "silu",
            "max_position_embeddings": MAX_POSITIONS,
            "rms_norm_eps": 1e-6,
            "rope_theta": 1000000.0,
            "tie_word_embeddings": False,
            "use_sliding_window": False,
            "dtype": "float32",
            **tokenizer.chat_ids(),
        }

    def weights(self, tokenizer: DemoTokenizer, prefix: str = "") -> Fills:
        """The tensors of a `Qwen2ForCausalLM` whose names start with `prefix`."""
        fills: Fills = {
            f"{prefix}model.embed_tokens.weight": Fill((tokenizer.size, self.hidden), _EMBEDDING_STD),
            # A zero row scores below the best of the others, so greedy decoding never picks it: answers stay
            # readable and go on to the requested length.
            f"{prefix}lm_head.weight": matrix(
                tokenizer.size, self.hidden, gain=_LOGIT_GAIN, zero_rows=tokenizer.unreadable_ids()
            ),
            **norm(f"{prefix}model.norm", self.hidden, bias=False),
        }
        for index in range(self.layers):
            fills |= self._layer(f"{prefix}model.layers.{index}")
        return fills

    def _layer(self, name: str) -> Fills:
        kv_size = self.kv_heads * self.head_dim
        return {
            **norm(f"{name}.input_layernorm", self.hidden, bias=False),
            **linear(f"{name}.self_attn.q_proj", self.hidden, self.hidden, gain=_ATTENTION_GAIN),
            **linear(f"{name}.self_attn.k_proj", kv_size, self.hidden, gain=_ATTENTION_GAIN),
            **linear(f"{name}.self_attn.v_proj", kv_size, self.hidden),
            **linear(f"{name}.self_attn.o_proj", self.hidden, self.hidden, bias=False),
            **norm(f"{name}.post_attention_layernorm", self.hidden, bias=False),
            **linear(f"{name}.mlp.gate_proj", self.intermediate, self.hidden, bias=False),
            **linear(f"{name}.mlp.up_proj", self.intermediate, self.hidden, bias=False),
            **linear(f"{name}.mlp.down_proj", self.hidden, self.intermediate, bias=False),
        }


def generation_config(tokenizer: DemoTokenizer) -> Mapping[str, Any]:
    """The content of `generation_config.json`."""
    return {"do_sample": False, **tokenizer.chat_ids()}
