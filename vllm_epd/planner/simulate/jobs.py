# SPDX-License-Identifier: Apache-2.0
"""A request on its way through a simulated fleet, and the pieces of its work. Pure."""

from typing import TYPE_CHECKING

from vllm_epd.planner.workload.requests import Request

if TYPE_CHECKING:
    from vllm_epd.planner.simulate.instance import Instance


class Journey:
    """One request.

    Attributes:
        request: what is asked for.
        prompt: tokens of its prompt, with its media.
        whole: tokens that it has in a KV cache at its end.
        media_tokens: of its embeddings.
        due: by when its first token should be there; None if nobody has said.
        parts: what of its media has to be encoded.
        unencoded: how many of these are not there yet.
        prefill: the instance that prefills.
        decode: the instance that generates.
        encoder: the last instance that has encoded for it.
        computed: tokens of its prompt that are prefilled.
        left: tokens that are still to be generated.
        first_token: when the first was there.
        done: when the last was there.
    """

    __slots__ = (
        "computed",
        "decode",
        "done",
        "due",
        "encoder",
        "first_token",
        "left",
        "media_tokens",
        "parts",
        "prefill",
        "prompt",
        "request",
        "unencoded",
        "whole",
    )

    def __init__(self, request: Request, prompt: int, parts: "list[Part]", due: float | None) -> None:
        self.request = request
        self.prompt = prompt
        self.whole = prompt + request.output_tokens
        self.media_tokens = sum(part.tokens for part in parts)
        self.parts = parts
        self.due = due
        self.unencoded = len(parts)
        self.prefill: Instance | None = None
        self.decode: Instance | None = None
        self.encoder: Instance | None = None
        self.computed = 0
        self.left = request.output_tokens
        self.first_token = -1.0
        self.done = -1.0


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

    __slots__ = ("held", "instance", "journey", "name", "pairs", "patches", "preprocess_s", "tiles", "tokens")

    def __init__(
        self, tokens: int, patches: float, pairs: float, tiles: int, preprocess_s: float, name: object | None
    ) -> None:
        self.tokens = tokens
        self.patches = patches
        self.pairs = pairs
        self.tiles = tiles
        self.preprocess_s = preprocess_s
        self.name = name
        self.instance: Instance | None = None
        self.held = False
        self.journey: Journey | None = None

    def shards(self, count: int) -> "list[Part]":
        """As many parts that share the work. Each is preprocessed whole: the cut is made after that."""
        if count == 1:
            return [self]
        tokens = [self.tokens * (index + 1) // count - self.tokens * index // count for index in range(count)]
        names = [None if self.name is None else (self.name, index, count) for index in range(count)]
        made = []
        for each, name in zip(tokens, names, strict=True):
            made.append(Part(each, self.patches / count, self.pairs / count, 1, self.preprocess_s, name))
        return made
