# SPDX-License-Identifier: Apache-2.0
"""Prompts of token ids whose KV caches are handed over, and between whom."""

from dataclasses import dataclass
from random import Random

TOKENS = (500, 2000, 8000)
MAX_MODEL_LEN = 8192
REQUESTS = 12
WARM_UP = 3
VOCABULARY = range(100, 300)


@dataclass(frozen=True, slots=True)
class Way:
    """How KV caches travel between a prefill and a decode instance of `vllm-epd up`."""

    name: str
    connector: str

    @property
    def arguments(self) -> tuple[str, ...]:
        """For every instance."""
        return ("--epd-kv-connector", self.connector, "--max-model-len", str(MAX_MODEL_LEN))


OURS, NIXL = Way("ours", "epd"), Way("vLLM's NIXL", "nixl")
WAYS = (OURS, NIXL)
"""Both under a role, which keeps the threads of NIXL and of vLLM's queues from spinning."""

NOTHING = "nothing to hand over"
"""The same requests once more, to the decode instance alone, whose prefix cache holds the prompt: what HTTP, API server
and one engine step take, which no hand-over can be faster than."""


def prompts(tokens: int) -> list[list[int]]:
    """Prompts of one length, all of them different, those for warming up first."""
    random = Random(tokens)
    return [random.choices(VOCABULARY, k=tokens) for _ in range(WARM_UP + REQUESTS)]
