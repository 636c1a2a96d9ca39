# SPDX-License-Identifier: Apache-2.0
"""What was found, on requests that were not searched with: so none is chosen for its luck. Pure."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, stdev

from vllm_epd.planner.fleet import Fleet
from vllm_epd.planner.search.cells import scaled
from vllm_epd.planner.search.ground import Ground
from vllm_epd.planner.search.objective import COARSE
from vllm_epd.planner.search.search import Trial
from vllm_epd.planner.search.sought import Way
from vllm_epd.planner.search.traffic import with_media
from vllm_epd.topology import Topology

OTHERS = 2
"""Further fleets of a way that are compared."""
NEAR = 1.03
"""A goodput with other requests is so far from that of the search, or a few times as far."""
RATES = (0.5, 0.75, 1.0, 1.25, 1.5)
MEDIA = (0.5, 2.0)
"""Of the sensitivity: parts of the goodput, and of the media of each request."""


@dataclass(frozen=True, slots=True)
class Contender:
    """The best of one way.

    Attributes:
        way: how stages are shared out.
        best: the fleet that was found; of one cell, where the whole is several.
        whole: the topology to run.
        goodput: requests in a second of the whole, mean over several sets of requests.
        error: standard error of that mean, relative to it.
        attainment: at the rate that is asked for, mean over the same sets; None if none is asked for.
        enough: whether what is promised is kept: at the rate that is asked for, or at any.
        looked: fleets that were looked at.
        others: the next best fleets with other topologies, each with its goodput.
    """

    way: Way
    best: Trial
    whole: Topology
    goodput: float
    error: float
    attainment: float | None
    enough: bool
    looked: int
    others: tuple[Trial, ...]

    @property
    def fleet(self) -> Fleet:
        """The one that was found."""
        return self.best.fleet

    @property
    def gpus(self) -> int:
        """Of the whole."""
        return self.whole.size

    @property
    def cells(self) -> float:
        """Times that the simulated fleet is in the whole."""
        return self.gpus / self.fleet.topology.size


@dataclass(frozen=True, slots=True)
class Sensitivity:
    """How a fleet does when what comes is not what was planned for.

    Attributes:
        attainment: by rate, in requests in a second.
        goodput: by media, in parts of what was planned for.
    """

    attainment: dict[float, float]
    goodput: dict[float, float]


def contender(ground: Ground, way: Way, trials: Sequence[Trial]) -> Contender:
    """What a way is worth, by its best fleet."""
    problem, best = ground.problem, trials[0]
    guess = best.score.rate or problem.rate or 0.0
    rates = [ground.goodput(requests).near(best.fleet, guess, NEAR).rate for requests in ground.comparing if guess]
    goodput = fmean(rates or [0.0])
    size, enough, attainment = best.fleet.topology.size, best.score.rate > 0, None
    gpus = size if size < ground.cell else problem.gpus
    if problem.rate is not None:
        if ground.cell < problem.gpus:
            needed = math.ceil(problem.rate / goodput * size) if goodput else problem.gpus + 1
            gpus, enough = min(problem.gpus, max(needed, len(best.fleet.topology.groups))), needed <= problem.gpus
        rate = problem.rate * size / gpus
        attainment = fmean(ground.goodput(requests).at(best.fleet, rate) for requests in ground.comparing)
    return Contender(
        way=way,
        best=best,
        whole=scaled(best.fleet.topology, gpus),
        goodput=goodput * gpus / size,
        error=stdev(rates) / len(rates) ** 0.5 / goodput if len(rates) > 1 and goodput else 0.0,
        attainment=attainment,
        enough=enough,
        looked=len(trials),
        others=_others(ground, trials, guess) if guess else (),
    )


def sensitivity(ground: Ground, each: Contender, plan: Contender) -> Sensitivity:
    """How a contender does at other rates than the plan's goodput, and with other media."""
    requests = ground.comparing[0]
    objective = ground.goodput(requests)
    rates = [plan.goodput * factor for factor in RATES]
    start = each.goodput / each.cells or ground.capacity(each.fleet)
    media = {
        factor: ground.goodput(with_media(requests, factor)).near(each.fleet, start / factor, 1.3, COARSE).rate
        * each.cells
        for factor in (MEDIA if ground.media else ())
    }
    return Sensitivity({rate: objective.at(each.fleet, rate / each.cells) for rate in rates}, media)


def _others(ground: Ground, trials: Sequence[Trial], rate: float) -> tuple[Trial, ...]:
    by_topology: dict[str, Trial] = {}
    for trial in trials:
        by_topology.setdefault(str(trial.fleet.topology), trial)
    next_best = list(by_topology.values())[1 : 1 + OTHERS]
    objective = ground.goodput(ground.comparing[0])
    return tuple(Trial(each.fleet, objective.near(each.fleet, rate, 1.3, COARSE)) for each in next_best)
