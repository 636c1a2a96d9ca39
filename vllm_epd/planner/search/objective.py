# SPDX-License-Identifier: Apache-2.0
"""How good a fleet is: the highest rate at which it keeps its promises, or whether it keeps them at a given one. Pure.

Every fleet gets the same requests, faster or slower, so that what differs is the fleet.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from vllm_epd.errors import ConfigError
from vllm_epd.planner.fleet import Fleet
from vllm_epd.planner.search.traffic import at_rate
from vllm_epd.planner.simulate.outcome import Outcome
from vllm_epd.planner.workload.requests import Request

Simulate = Callable[[Fleet, Sequence[Request]], Outcome]

FINE = 1.01
"""A goodput is sought until what is too much is no further above what is not."""
COARSE = 1.05
"""The same where it is not sought so exactly."""
PART = 4
"""For a first look, one request in so many is simulated."""
FIRST_LOOK = 60
"""Requests that a first look needs."""
HOPELESS = 0.8
"""A fleet that attains less than this part of what is promised, at a first look, gets no second one."""
WIDEST = 2**10
"""How far below its capacity a fleet is tried before it counts as one that never keeps its promises, and how far above
it before it counts as one that always does: so few requests that all have what is promised when they come at once."""


@dataclass(frozen=True, slots=True)
class Slo:
    """What is promised: so many requests of all get their first token, and then each token, within these times.

    Attributes:
        ttft_s: time to first token.
        tpot_s: mean time of a token after the first.
        share: of the requests that must have both.
    """

    ttft_s: float
    tpot_s: float
    share: float = 0.9

    def __post_init__(self) -> None:
        if not (self.ttft_s > 0 and self.tpot_s > 0):
            raise ConfigError(f"targets must be more than 0 s, got TTFT {self.ttft_s} s and TPOT {self.tpot_s} s")
        if not 0 < self.share <= 1:
            raise ConfigError(f"the share of requests with what is promised is above 0 and at most 1, got {self.share}")


@dataclass(frozen=True, slots=True)
class Score:
    """How good a fleet is.

    Attributes:
        value: more is better; of one kind of objective only.
        rate: requests in a second; the highest at which promises are kept. 0 if that is not known, or there is none.
        attainment: part of the requests that have what is promised, at that rate, or at the one that was tried.
        rough: whether its own rate was not sought, since others are better.
    """

    value: float
    rate: float
    attainment: float
    rough: bool = False


class Objective(Protocol):
    """What is sought."""

    def score(self, fleet: Fleet, best: Score | None) -> Score:
        """Of a fleet, when that is the best so far."""
        ...

    def enough(self, score: Score) -> bool:
        """Whether nothing better can be had."""
        ...


def attainment(outcome: Outcome, slo: Slo) -> float:
    """The part of all requests that have what is promised; those that are refused have not."""
    kept = sum(1 for each in outcome.served if each.ttft_s <= slo.ttft_s and each.tpot_s <= slo.tpot_s)
    return kept / (len(outcome.served) + len(outcome.refused))


def first_look(requests: Sequence[Request]) -> Sequence[Request]:
    """The requests that are enough to see that a fleet is hopeless."""
    return requests[: max(FIRST_LOOK, len(requests) // PART)]


@dataclass(frozen=True, slots=True)
class Goodput:
    """The highest rate.

    Attributes:
        simulate: a run.
        requests: of it, at any rate.
        slo: what is promised.
        capacity: requests in a second that a fleet takes at most, by means; where the search for a rate begins.
    """

    simulate: Simulate
    requests: Sequence[Request]
    slo: Slo
    capacity: Callable[[Fleet], float]

    def score(self, fleet: Fleet, best: Score | None) -> Score:
        """The goodput of a fleet that is better than the best; of another one, how near it comes to the best's.

        That takes one run, or a part of one, in the place of a search for its own rate.
        """
        if best is None or best.rate == 0:
            coarse = self.near(fleet, 0.8 * self.capacity(fleet), 2.0, COARSE)
            return self.near(fleet, coarse.rate) if coarse.rate else coarse
        for requests, needed in (
            (first_look(self.requests), HOPELESS * self.slo.share),
            (self.requests, self.slo.share),
        ):
            share = self.at(fleet, best.rate, requests)
            if share < needed:
                return Score(best.rate * share / self.slo.share, 0.0, share, rough=True)
        return self.near(fleet, best.rate, known=share)

    def near(
        self, fleet: Fleet, rate: float, step: float = 1.1, tolerance: float = FINE, known: float | None = None
    ) -> Score:
        """The goodput of a fleet.

        Args:
            fleet: whose.
            rate: to begin with.
            step: by which to go on from there until it is known what is too much; then the distance is halved.
            tolerance: where to stop, as a ratio.
            known: the attainment at `rate`, if it is.
        """
        good, best, bad, lowest, highest = 0.0, 0.0, 0.0, rate / WIDEST, rate * WIDEST
        while not (good and bad) or bad / good > tolerance:
            share, known = self.at(fleet, rate) if known is None else known, None
            if share >= self.slo.share:
                good, best = rate, share
                if rate >= highest:
                    break
            else:
                bad = rate
                if rate <= lowest:
                    return Score(share - 1, 0.0, share)
            rate = (good * bad) ** 0.5 if good and bad else rate * step if good else rate / step
            step **= 1.5
        return Score(good, good, best)

    def enough(self, score: Score) -> bool:
        """Never: it could always be more."""
        return False

    def at(self, fleet: Fleet, rate: float, requests: Sequence[Request] | None = None) -> float:
        """The attainment at one rate, of these requests or of all."""
        arriving = at_rate(self.requests if requests is None else requests, rate)
        return attainment(self.simulate(fleet, arriving), self.slo)


@dataclass(frozen=True, slots=True)
class AtRate:
    """Promises kept at one rate, with few GPUs.

    Attributes:
        goodput: knows the requests and what is promised.
        rate: requests in a second.
    """

    goodput: Goodput
    rate: float

    def score(self, fleet: Fleet, best: Score | None) -> Score:
        """A look at some requests is enough for those that are far worse than the best."""
        few = first_look(self.goodput.requests)
        share = self.goodput.at(fleet, self.rate, few)
        if rough := best is not None and share < HOPELESS * best.attainment:
            return self._score(share, rough)
        return self._score(self.goodput.at(fleet, self.rate), rough=False)

    def enough(self, score: Score) -> bool:
        """One that keeps its promises."""
        return not score.rough and score.rate > 0

    def _score(self, share: float, rough: bool) -> Score:
        return Score(share, self.rate if share >= self.goodput.slo.share else 0.0, share, rough)
