# SPDX-License-Identifier: Apache-2.0
"""What requests ask of each stage on average, and so how many of them a topology can take at most. Pure.

Means know nothing of queues and bursts: they say where to begin a search, not where it ends.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

from vllm_epd.planner.fleet import Limits
from vllm_epd.planner.profile.costs import decode_s, encode_s, prefill_pairs, prefill_s, preprocess_s
from vllm_epd.planner.profile.media import Encoded, measure
from vllm_epd.planner.profile.profile import Profile
from vllm_epd.planner.search.families import Family, counts
from vllm_epd.planner.workload.requests import Request
from vllm_epd.topology import Group, Topology
from vllm_epd.types import Role

SAMPLE = 500
"""Requests of which the mean is taken at most."""


@dataclass(frozen=True, slots=True)
class Sizes:
    """One request, as a model takes it.

    Attributes:
        media: its items.
        prompt: tokens of text and media.
        output: tokens that are generated.
    """

    media: tuple[Encoded, ...]
    prompt: int
    output: int

    @property
    def embeddings(self) -> int:
        """Tokens of its media."""
        return sum(item.tokens for item in self.media)

    @property
    def context(self) -> int:
        """Tokens in the KV cache at its end."""
        return self.prompt + self.output


def sizes(profile: Profile, request: Request) -> Sizes:
    """What a request becomes."""
    media = tuple(measure(profile, item) for item in request.items)
    return Sizes(media, request.text_tokens + sum(item.tokens for item in media), request.output_tokens)


def stage_seconds(profile: Profile, requests: Sequence[Sizes], limits: Limits, tpot_s: float) -> Mapping[Role, float]:
    """Seconds of a device that a request takes in each stage, in the mean; batches are full."""
    means: dict[Role, float] = dict.fromkeys(Role, 0.0)
    for each in requests:
        means[Role.ENCODE] += sum(_encode_s(profile, item, limits) for item in each.media)
        means[Role.PREFILL] += _prefill_s(profile, each, limits)
        means[Role.DECODE] += _decode_s(profile, each, limits, tpot_s)
    return {role: total / len(requests) for role, total in means.items()}


def least_ttft_s(profile: Profile, request: Sizes, encoders: int) -> float:
    """A request cannot have its first token sooner, with all to itself: each image is cut over all encoders."""
    parts = [_parts(item, encoders) for item in request.media]
    encode = max(
        (
            preprocess_s(profile.preprocess, item) / count
            + encode_s(profile.encode, item.patches / count, item.pairs / count)
            for item, count in zip(request.media, parts, strict=True)
        ),
        default=0.0,
    )
    return encode + prefill_s(profile.prefill, request.prompt, prefill_pairs(request.prompt, 0))


def least_tpot_s(profile: Profile, request: Sizes) -> float:
    """A request cannot have its tokens faster, with a decoder to itself."""
    return decode_s(profile.decode, 1, request.prompt) if request.output > 1 else 0.0


def capacity(seconds: Mapping[Role, float], topology: Topology) -> float:
    """Requests in a second, if every instance always works on what it is best needed for.

    Of each set of stages, all work must be done by instances that serve one of them.
    """
    rates = []
    for number in range(1, len(Role) + 1):
        for stages in combinations(Role, number):
            work = sum(seconds[stage] for stage in stages)
            hands = sum(group.count for group in topology.groups if group.roles.roles & set(stages))
            if work > 0:
                rates.append(hands / work)
    return min(rates)


def proportional(family: Family, gpus: int, seconds: Mapping[Role, float]) -> Topology:
    """The topology of these kinds of instances with the highest capacity; of equals the most even one."""
    topologies = [Topology(tuple(map(Group, family, each))) for each in counts(gpus, len(family))]
    return max(topologies, key=lambda each: (capacity(seconds, each), -max(group.count for group in each.groups)))


def _parts(item: Encoded, encoders: int) -> int:
    return max(1, min(item.tiles, encoders))


def _encode_s(profile: Profile, item: Encoded, limits: Limits) -> float:
    return encode_s(profile.encode, item.patches, item.pairs) - profile.encode.base_s * (1 - 1 / limits.encode_items)


def _prefill_s(profile: Profile, request: Sizes, limits: Limits) -> float:
    steps = request.prompt / limits.batched_tokens
    alone = prefill_s(profile.prefill, request.prompt, prefill_pairs(request.prompt, 0))
    return alone - profile.prefill.base_s * (1 - steps)


def _decode_s(profile: Profile, request: Sizes, limits: Limits, tpot_s: float) -> float:
    """The share of a step's time, in the largest batch that meets the target."""
    context = request.prompt + request.output / 2
    batch = limits.decode_sequences
    while batch > 1 and decode_s(profile.decode, batch, batch * context) > tpot_s:
        batch -= 1
    return (request.output - 1) * decode_s(profile.decode, batch, batch * context) / batch
