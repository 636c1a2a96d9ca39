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


def objection(
    journey: Journey,
    most: int,
    encoders: Sequence[Instance],
    prefills: Sequence[Instance],
    decodes: Sequence[Instance],
) -> str | None:
    """Why these instances could never serve it, whatever else they have to do; None if they can.

    Args:
        journey: what is asked for.
        most: tokens that the model takes.
        encoders: instances that may encode.
        prefills: instances that may prefill.
        decodes: instances that may generate.
    """
    if journey.whole > most:
        return f"{journey.whole} tokens of prompt and answer are more than the {most} that the model takes"
    for tokens, able in ((journey.whole, decodes), (journey.prompt, prefills)):
        largest = max(each.room.kv_tokens for each in able)
        if tokens > largest:
            return f"{tokens} tokens do not fit a KV cache, of which the largest has room for {largest}"
    return _objection_to_media(journey, encoders, prefills) if journey.parts else None


def _objection_to_media(journey: Journey, encoders: Sequence[Instance], prefills: Sequence[Instance]) -> str | None:
    if not encoders:
        return "it has media, and no instance encodes"
    pools = [each.pool.capacity for each in encoders]
    landing = max(each.pool.capacity for each in prefills)
    largest, tokens = max(part.tokens for part in journey.parts), journey.media_tokens
    if largest > max(pools) or tokens > sum(pools):
        return f"embeddings of {tokens} tokens do not fit the pools of encode, of which the largest has {max(pools)}"
    if tokens > landing:
        return f"embeddings of {tokens} tokens do not fit at prefill, which has room for {landing}"
    return None
