# SPDX-License-Identifier: Apache-2.0
"""What a search stands on: a space, requests to search with, others to compare with, mean loads. Pure."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from math import ceil

from vllm_epd.errors import ConfigError
from vllm_epd.planner.fleet import Fleet, Limits
from vllm_epd.planner.search.cells import cell_of
from vllm_epd.planner.search.demand import (
    SAMPLE,
    Sizes,
    capacity,
    least_tpot_s,
    least_ttft_s,
    proportional,
    sizes,
    stage_seconds,
)
from vllm_epd.planner.search.families import families
from vllm_epd.planner.search.needs import Largest, check_context, shortage_of
from vllm_epd.planner.search.objective import Goodput
from vllm_epd.planner.search.sought import Problem
from vllm_epd.planner.search.space import Space, build
from vllm_epd.planner.simulate.outcome import Outcome
from vllm_epd.planner.simulate.run import simulate
from vllm_epd.planner.workload.requests import Request
from vllm_epd.types import Role

SETTLED = 20.0
"""Requests keep coming for so many times as one may take, so that a queue that grows is seen to grow."""
LEAST = 200
"""Requests of a run."""
MOST = 750
"""The same for each GPU of a cell, so that a run takes a second at most."""
PART = 3
"""Where goodputs are sought, one request in so many is enough: what is found is compared with all."""
ENOUGH = 500
"""Requests that are never made fewer for that: with too few, luck decides."""
COMPARED = 3
"""Sets of requests to compare with."""


@dataclass(frozen=True, slots=True)
class Ground:
    """What a search stands on.

    Attributes:
        problem: what is sought.
        cell: GPUs of the fleets that are simulated.
        media: whether any request has some.
        space: fleets of a cell.
        seconds: of a device that a request takes in each stage, under limits.
        searching: requests to search with.
        comparing: sets of requests to compare with.
    """

    problem: Problem
    cell: int
    media: bool
    space: Space
    seconds: Callable[[Limits], Mapping[Role, float]]
    searching: Sequence[Request]
    comparing: Sequence[Sequence[Request]]

    @property
    def at_rate(self) -> bool:
        """Whether fleets are sought that keep what is promised at a rate, and not the highest rate of each."""
        return self.problem.rate is not None and self.cell == self.problem.gpus

    def goodput(self, requests: Sequence[Request]) -> Goodput:
        """The objective with these requests."""
        return Goodput(self.run, requests, self.problem.slo, self.capacity)

    def run(self, fleet: Fleet, requests: Sequence[Request]) -> Outcome:
        """Simulate."""
        return simulate(fleet, self.problem.profile, requests, ttft_slo_s=self.problem.slo.ttft_s)

    def capacity(self, fleet: Fleet) -> float:
        """Requests in a second that a fleet can take by means."""
        return capacity(self.seconds(fleet.limits), fleet.topology)


def prepare(problem: Problem) -> Ground:
    """Look at the workload, and at what is feasible for it.

    Raises:
        ConfigError: nothing is, or no fleet can keep what is promised.
    """
    sample = problem.requests(problem.seed, SAMPLE)
    if not sample:
        raise ConfigError("the workload has no requests")
    means = [sizes(problem.profile, request) for request in sample[:SAMPLE]]
    cell = cell_of(problem.gpus)

    @lru_cache
    def seconds(limits: Limits) -> Mapping[Role, float]:
        return stage_seconds(problem.profile, means, limits, problem.slo.tpot_s)

    count = _count(problem, means, cell, seconds(problem.base.limits))
    sets = [problem.requests(problem.seed + number, count) for number in range(1 + COMPARED)]
    known = [sizes(problem.profile, request) for requests in sets for request in requests]
    largest = Largest.of(known)
    check_context(problem.profile, largest)
    _check_slo(problem, means)
    media = largest.patches > 0
    shortage = shortage_of(problem.profile, problem.base, largest)
    space = build(cell, families(media), shortage, problem.choices, problem.base)
    ground = Ground(problem, cell, media, space, seconds, sets[0], sets[1:])
    return ground if ground.at_rate else replace(ground, searching=sets[0][: max(ENOUGH, count // PART)])


def _count(problem: Problem, means: Sequence[Sizes], cell: int, seconds: Mapping[Role, float]) -> int:
    """Requests of a run: as many as come in a multiple of the time that one of them may take."""
    simplest = min(families(media=any(each.media for each in means)), key=len)
    rate = capacity(seconds, proportional(simplest, cell, seconds))
    output = sum(each.output for each in means) / len(means)
    stay_s = problem.slo.ttft_s + output * problem.slo.tpot_s
    return int(min(MOST * cell, max(LEAST, SETTLED * rate * stay_s)))


def _check_slo(problem: Problem, requests: Sequence[Sizes]) -> None:
    """Refuse targets that a request with a whole fleet to itself misses."""
    slo, profile = problem.slo, problem.profile
    ttft = [least_ttft_s(profile, each, problem.gpus) for each in requests]
    tpot = [least_tpot_s(profile, each) for each in requests]
    for name, target, needed in (("TTFT", slo.ttft_s, ttft), ("TPOT", slo.tpot_s, tpot)):
        if sum(each <= target for each in needed) < slo.share * len(needed):
            least = sorted(needed)[ceil(slo.share * len(needed)) - 1]
            raise ConfigError(
                f"a {name} of {target:g} s cannot be kept for {slo.share:.0%} of the requests by any fleet of"
                f" {profile.hardware.name}: without any other request they need {least:.3g} s; allow more time, or"
                " ask for less"
            )
