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
"""Requests of about the same length to a decode instance whose prefix cache holds all of the prompt but its last token,
after P has prefilled it too: what HTTP, API server and one engine step of one token take, with what is left of D in the
caches of the cores that P has used. No hand-over can be faster."""

BLOCK_TOKENS = 128
"""Of vLLM on CPUs; a prefix cache holds whole blocks."""


def cached(tokens: int) -> int:
    """The length next to `tokens` of which a prefix cache can hold all but the last token."""
    return round(tokens / BLOCK_TOKENS) * BLOCK_TOKENS + 1


def prompts(tokens: int) -> list[list[int]]:
    """Prompts of one length, all of them different, those for warming up first."""
    random = Random(tokens)
    return [random.choices(VOCABULARY, k=tokens) for _ in range(WARM_UP + REQUESTS)]
