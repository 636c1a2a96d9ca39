# SPDX-License-Identifier: Apache-2.0
"""How much of an engine that prefills or decodes requests have, and whether there is room for one more. Pure.

The bounds are what the instance tells of itself: sequences that it runs at once, and tokens that its KV cache holds.
Beyond them a request would wait in the engine, where nobody can put it behind a more urgent one or give it to another
instance. One that tells nothing has no bounds.
"""

from msgspec import Struct

from vllm_epd.types import InstanceInfo

#: Names of the bounds among an instance's limits.
SEQUENCES = "max_num_seqs"
KV_TOKENS = "kv_tokens"
#: Name of the tokens of one chunk, in which an instance hands over KV caches.
KV_CHUNK_TOKENS = "kv_chunk_tokens"


class Ask(Struct, frozen=True):
    """What a request needs of an engine.

    Attributes:
        sequences: prompts and choices that run there.
        tokens: what their prompts take of the KV cache.
        work: what they are estimated at, in tokens.
    """

    sequences: int = 1
    tokens: float = 0.0
    work: float = 0.0


class Seated(Struct):
    """What requests have of one engine."""

    sequences: int = 0
    tokens: float = 0.0

    def fits(self, ask: Ask, info: InstanceInfo) -> bool:
        """Whether there is room; where nobody is, there is for any request: it will never find more."""
        if not self.sequences:
            return True
        sequences, tokens = info.limits.get(SEQUENCES), info.limits.get(KV_TOKENS)
        return (sequences is None or self.sequences + ask.sequences <= sequences) and (
            tokens is None or self.tokens + ask.tokens <= tokens
        )

    def take(self, ask: Ask) -> None:
        """Give a request what it needs."""
        self.sequences += ask.sequences
        self.tokens += ask.tokens

    def drop(self, ask: Ask) -> None:
        """Take that back."""
        self.sequences -= ask.sequences
        self.tokens = self.tokens - ask.tokens if self.sequences else 0.0
