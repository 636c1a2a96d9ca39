# SPDX-License-Identifier: Apache-2.0
"""From a request to what has to be done for it, or to why nobody can do it. Pure."""

from collections.abc import Sequence

from vllm_epd.planner.profile.costs import preprocess_s
from vllm_epd.planner.profile.media import measure
from vllm_epd.planner.profile.profile import Profile
from vllm_epd.planner.simulate.instance import Instance
from vllm_epd.planner.simulate.jobs import Journey, Part
from vllm_epd.planner.workload.requests import Item, Request


def journey_of(request: Request, profile: Profile, ttft_slo_s: float | None) -> Journey:
    """What a request asks of the stages."""
    parts = [_part(item, profile) for item in request.items]
    prompt = request.text_tokens + sum(part.tokens for part in parts)
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


def objection(journey: Journey, most: int, encoders: Sequence[Instance], decodes: Sequence[Instance]) -> str | None:
    """Why these instances could never serve it, whatever else they have to do; None if they can.

    Args:
        journey: what is asked for.
        most: tokens that the model takes.
        encoders: instances that may encode.
        decodes: instances that may generate.
    """
    if journey.whole > most:
        return f"{journey.whole} tokens of prompt and answer are more than the {most} that the model takes"
    largest = max(each.room.kv_tokens for each in decodes)
    if journey.whole > largest:
        return f"{journey.whole} tokens do not fit a KV cache, of which the largest has room for {largest}"
    if not journey.parts:
        return None
    if not encoders:
        return "it has media, and no instance encodes"
    pools = [each.pool.capacity for each in encoders]
    item, tokens = max(part.tokens for part in journey.parts), journey.media_tokens
    if item > max(pools) or tokens > sum(pools):
        return f"embeddings of {tokens} tokens do not fit the pools of encode, of which the largest has {max(pools)}"
    return None


def could_prefill(journey: Journey, instance: Instance) -> bool:
    """Whether an instance that prefills could take it if it had nothing else to do."""
    tokens = journey.whole if instance.roles.decode else journey.prompt
    return tokens <= instance.room.kv_tokens and journey.media_tokens <= instance.pool.capacity


def why_not_prefilled(journey: Journey, prefills: Sequence[Instance]) -> str:
    """What is said of a request that none of these could take."""
    caches, pools = (max(each.room.kv_tokens for each in prefills), max(each.pool.capacity for each in prefills))
    asked = f"{journey.prompt} tokens of prompt, {journey.media_tokens} of them embeddings, do not fit at prefill"
    return f"{asked}: the largest KV cache has room for {caches}, the largest pool for {pools}"
