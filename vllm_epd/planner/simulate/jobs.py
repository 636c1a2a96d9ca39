# SPDX-License-Identifier: Apache-2.0
"""A request on its way through a simulated fleet, and the pieces of its work. Pure."""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from vllm_epd.planner.workload.requests import Request

if TYPE_CHECKING:
    from vllm_epd.planner.simulate.instance import Instance


@dataclass(slots=True, eq=False)
class Part:
    """One medium of a request, or a shard of it.

    Attributes:
        tokens: that it becomes.
        patches: that the encoder works on.
        pairs: of patches, that attention looks at.
        tiles: that can be encoded apart.
        preprocess_s: of one core, before.
        name: equal names are the same medium; None for one like no other.
        instance: where it is encoded.
        held: it need not be encoded, since it is there.
        journey: whose it is.
    """

    tokens: int
    patches: float
    pairs: float
    tiles: int
    preprocess_s: float
    name: object | None
    instance: "Instance | None" = None
    held: bool = False
    journey: "Journey | None" = None

    def shards(self, count: int) -> "list[Part]":
        """As many parts that share the work. Each is preprocessed whole: the cut is made after that."""
        if count == 1:
            return [self]
        made = []
        for index in range(count):
            tokens = self.tokens * (index + 1) // count - self.tokens * index // count
            name = None if self.name is None else (self.name, index, count)
            made.append(Part(tokens, self.patches / count, self.pairs / count, 1, self.preprocess_s, name))
        return made


@dataclass(slots=True, eq=False)
class Journey:
    """One request.

    Attributes:
        request: what is asked for.
        prompt: tokens of its prompt, with its media.
        parts: its media, each once, cut as they are encoded.
        due: by when its first token should be there; None if nobody has said.
        output: tokens that are generated for it.
        whole: tokens that it has in a KV cache at its end.
        media_tokens: of its embeddings.
        unencoded: how many of its parts are not there yet.
        computed: tokens of its prompt that are prefilled.
        way: whether the instance that prefills encodes its media, and whether it generates.
        prefill: the instance that prefills.
        decode: the instance that generates.
        encoder: the last instance that has encoded for it.
        first_token: when the first was there.
        done: when the last was there.
    """

    request: Request
    prompt: int
    parts: list[Part]
    due: float | None
    output: int = field(init=False)
    whole: int = field(init=False)
    media_tokens: int = field(init=False)
    unencoded: int = field(init=False)
    computed: int = 0
    way: tuple[bool, bool] = (False, False)
    prefill: "Instance | None" = None
    decode: "Instance | None" = None
    encoder: "Instance | None" = None
    first_token: float = -1.0
    done: float = -1.0

    def __post_init__(self) -> None:
        self.output = self.request.output_tokens
        self.whole = self.prompt + self.output
        self.media_tokens = sum(part.tokens for part in self.parts)
        self.unencoded = len(self.parts)
