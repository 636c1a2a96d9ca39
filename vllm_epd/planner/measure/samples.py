# SPDX-License-Identifier: Apache-2.0
"""What was measured, in the words that costs are made of. Pure."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import median

from vllm_epd.planner.measure.chat import Answer, Shot
from vllm_epd.planner.measure.meters import Meters
from vllm_epd.planner.profile.media import Encoded, measure_visual
from vllm_epd.planner.profile.profile import Native, Tiled
from vllm_epd.planner.workload.requests import Item, Kind
from vllm_epd.types import Role

LEAST_S = 1e-5
"""Differences of times below that are noise of clocks."""

LEAST_STEPS = 8
"""Steps in which all requests of a round must take part, for it to tell what a step of so many takes."""


@dataclass(frozen=True, slots=True)
class Sample:
    """One round of requests, as it went.

    Attributes:
        series: what they are part of, such as `text`.
        shots: that were sent; at once, or where one goes on meanwhile, the others one after the other.
        answers: to them.
        meters: of the instance of each stage; one instance of several stages is named under each of them.
        router_s: of processor time of the router; 0 without one.
        all_s: of processor time of all processes of the target; None if they are not on this host.
        client_s: of processor time of whoever sent it.
    """

    series: str
    shots: tuple[Shot, ...]
    answers: tuple[Answer, ...]
    meters: Mapping[Role, Meters]
    router_s: float = 0.0
    all_s: float | None = None
    client_s: float = 0.0

    @property
    def answer(self) -> Answer:
        """That to the first request, which is the only one but for series of several."""
        return self.answers[0]

    def span(self, role: Role) -> float:
        """Seconds that a router has counted for the calls of a stage; 0 without any."""
        return self.answer.spans.get(role.value, 0.0)


@dataclass(frozen=True, slots=True)
class Shape:
    """Which stages are apart.

    Attributes:
        encode_apart: the instance that encodes does not prefill.
        decode_apart: the instance that prefills does not decode.
        routed: a router is in front, which tells how long its calls take.
    """

    encode_apart: bool
    decode_apart: bool
    routed: bool

    @property
    def first_token_from(self) -> Role:
        """The stage under which a router counts the call that gives the first token."""
        return Role.PREFILL if self.decode_apart else Role.DECODE


@dataclass(frozen=True, slots=True)
class Measured:
    """All samples of one target.

    Attributes:
        samples: of all series.
        media: what images become.
        shape: which stages are apart.
        embedding_bytes: of one token.
        kv_bytes: of one token.
    """

    samples: Sequence[Sample]
    media: Tiled | Native
    shape: Shape
    embedding_bytes: int
    kv_bytes: int

    def medians(self, series: str, value: Callable[[Sample], float | None]) -> Iterator[tuple[Sample, float]]:
        """The median of a value over the repeats of each round, with one of its samples; None does not count."""
        found: dict[tuple[Shot, ...], list[tuple[Sample, float]]] = {}
        for sample in self.samples:
            if sample.series == series and (one := value(sample)) is not None:
                found.setdefault(sample.shots, []).append((sample, one))
        for same in found.values():
            yield same[0][0], median(one for _, one in same)

    def encoded(self, sample: Sample) -> Encoded:
        """What the images of a sample's first request become, all together."""
        items = [measure_visual(self.media, Item(Kind.IMAGE, *size)) for size in sample.shots[0].images]
        return Encoded(
            tiles=sum(item.tiles for item in items),
            patches=sum(item.patches for item in items),
            pairs=sum(item.pairs for item in items),
            tokens=sum(item.tokens for item in items),
            pixels=sum(item.pixels for item in items),
        )


def step_s(sample: Sample, apart: bool) -> float | None:
    """Seconds between tokens of one request while all are generated for; None if that was too short.

    A piece of an answer may hold several tokens; those of one request count as equally long.

    Args:
        sample: a round of requests.
        apart: the first token of each comes from another instance, and what is taken over for the next is no step.
    """
    if any(len(answer.moments) <= apart for answer in sample.answers):
        return None
    begin = max(answer.moments[int(apart)] for answer in sample.answers)
    end = min(answer.moments[-1] for answer in sample.answers)
    steps = []
    for shot, answer in zip(sample.shots, sample.answers, strict=True):
        within = [moment for moment in answer.moments if begin <= moment <= end]
        tokens_per_piece = (shot.output_tokens - 1) / max(1, len(answer.moments) - 1)
        tokens = (len(within) - 1) * tokens_per_piece
        if tokens < LEAST_STEPS:
            return None
        steps.append((within[-1] - within[0]) / tokens)
    return median(steps)
