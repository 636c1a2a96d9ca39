# SPDX-License-Identifier: Apache-2.0
"""From a request to what has to be done for it, or to why nobody can do it. Pure."""

from collections.abc import Sequence
from typing import NamedTuple

from vllm_epd.planner.fleet import Fleet
from vllm_epd.planner.profile.costs import preprocess_s
from vllm_epd.planner.profile.media import measure
from vllm_epd.planner.profile.profile import Profile
from vllm_epd.planner.simulate.instance import Instance
from vllm_epd.planner.simulate.jobs import Journey, Part
from vllm_epd.planner.workload.requests import Item, Request


def journey_of(request: Request, profile: Profile, ttft_slo_s: float | None) -> Journey:
    """What a request asks of the stages; a medium that it has twice is encoded once, and is twice in the prompt."""
    prompt = request.text_tokens
    parts: list[Part] = []
    names: set[int | None] = set()
    for item in request.items:
        part = _part(item, profile)
        prompt += part.tokens
        if item.name is None or item.name not in names:
            parts.append(part)
            names.add(item.name)
    return Journey(request, prompt, parts, None if ttft_slo_s is None else request.at + ttft_slo_s)


def _part(item: Item, profile: Profile) -> Part:
    encoded = measure(profile, item)
    return Part(
        encoded.tokens,
        encoded.patches,
        encoded.pairs,
        encoded.tiles,
        preprocess_s(profile.preprocess, encoded),
        item.name,
    )


class Bounds(NamedTuple):
    """What a model and those that encode for it can take at most.

    Attributes:
        context: tokens of prompt and answer.
        pool: tokens of embeddings in the largest pool.
        pools: the same in all of them; 0 if nobody encodes.
        patches: of an item that is encoded.
    """

    context: int
    pool: int
    pools: int
    patches: int

    @classmethod
    def of(cls, context: int, encoders: Sequence[Instance]) -> "Bounds":
        """Of these."""
        pools = [each.room.embedding_tokens for each in encoders]
        patches = max((each.room.encode_patches for each in encoders), default=0)
        return cls(context, max(pools, default=0), sum(pools), patches)


def objection(journey: Journey, bounds: Bounds) -> str | None:
    """Why it could never be served, whatever else there is to do; None if it could, as far as these bounds say."""
    if journey.whole > bounds.context:
        return f"{journey.whole} tokens of prompt and answer are more than the {bounds.context} that the model takes"
    if not journey.parts:
        return None
    if not bounds.pools:
        return "it has media, and no instance encodes"
    item, tokens = max(part.tokens for part in journey.parts), journey.media_tokens
    if item > bounds.pool or tokens > bounds.pools:
        return f"embeddings of {tokens} tokens do not fit the pools of encode, of which the largest has {bounds.pool}"
    patches = max(part.patches for part in journey.parts)
    if patches > bounds.patches:
        return f"an item of {patches} patches does not fit the working memory of encode, which takes {bounds.patches}"
    return None


def could_prefill(journey: Journey, instance: Instance, decodes: Sequence[Instance], fleet: Fleet) -> bool:
    """Whether an instance could take it if it had nothing else to do, with one of those that can go on from there."""
    room, roles = instance.room, instance.roles
    tokens = journey.whole if roles.decode else journey.prompt
    return (
        tokens <= room.kv_tokens
        and journey.media_tokens <= room.embedding_tokens
        and (fleet.chunked or journey.prompt <= room.step_tokens)
        and (not roles.encode or all(part.patches <= room.encode_patches for part in journey.parts))
        and (roles.decode or any(journey.whole <= each.room.kv_tokens for each in decodes))
    )


def why_not_prefilled(journey: Journey, prefills: Sequence[Instance], decodes: Sequence[Instance], fleet: Fleet) -> str:
    """What is said of a request that none of these could take."""
    caches = [each.room.kv_tokens for each in (*prefills, *decodes) if each.roles.decode]
    if journey.whole > max(caches):
        return f"{journey.whole} tokens do not fit a KV cache, of which the largest has room for {max(caches)}"
    steps = max(each.room.step_tokens for each in prefills)
    if not fleet.chunked and journey.prompt > steps:
        return f"a prompt of {journey.prompt} tokens does not fit one step, and the largest takes {steps}"
    kv, pools = (max(each.room.kv_tokens for each in prefills), max(each.pool.capacity for each in prefills))
    asked = f"{journey.prompt} tokens of prompt, {journey.media_tokens} of them embeddings, do not fit at prefill"
    return f"{asked}: the largest KV cache has room for {kv}, the largest pool for {pools}"
