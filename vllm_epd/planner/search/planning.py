# SPDX-License-Identifier: Apache-2.0
"""From a problem to a plan: each way to share out the work at its best, then compared with other requests."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from vllm_epd.planner.fleet import Limits
from vllm_epd.planner.search.compare import Contender, Sensitivity, contender, sensitivity
from vllm_epd.planner.search.fewest import attempts, fewest
from vllm_epd.planner.search.ground import Ground, prepare
from vllm_epd.planner.search.objective import AtRate, Objective
from vllm_epd.planner.search.search import Budget, Trial, search
from vllm_epd.planner.search.sought import LEAST_LOOKS, SHARES, Problem, Progress, Step, Way, ways
from vllm_epd.planner.search.space import Space
from vllm_epd.planner.search.starts import starts
from vllm_epd.planner.search.verdict import Verdict, judge

SEARCHING = 0.55
"""Of the time; the rest is for comparing what was found."""
STARTS = 8
"""Fleets of each way that the mean loads suggest."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What is told to who asked.

    Attributes:
        ground: on which it was sought.
        contenders: the best of each way.
        verdict: which of them, and why.
        sensitivity: of the chosen one and the baselines.
    """

    ground: Ground
    contenders: tuple[Contender, ...]
    verdict: Verdict
    sensitivity: Mapping[Way, Sensitivity]

    @property
    def chosen(self) -> Contender:
        """The one to run."""
        return next(each for each in self.contenders if each.way is self.verdict.chosen)


def plan(problem: Problem, budget: Budget, clock: Callable[[], float], progress: Progress) -> Plan:
    """Find the fleet to run.

    Args:
        problem: what for.
        budget: fleets to look at, and time.
        clock: seconds, for the time.
        progress: is told.

    Raises:
        ConfigError: nothing is feasible, or no fleet that was looked at keeps what is promised.
    """
    ground = prepare(problem)
    found = _seek(ground, budget, clock, progress)
    contenders = []
    for number, (way, trials) in enumerate(found.items()):
        progress(Step("comparing", number / len(found)))
        contenders.append(contender(ground, way, trials))
    verdict = judge(problem, contenders)
    chosen = next(each for each in contenders if each.way is verdict.chosen)
    compared = [each for each in contenders if each.way.baseline or each is chosen]
    sensitivities = {}
    for number, each in enumerate(compared):
        progress(Step("other traffic", number / len(compared)))
        sensitivities[each.way] = sensitivity(ground, each, chosen)
    return Plan(ground, tuple(contenders), verdict, sensitivities)


def _seek(ground: Ground, budget: Budget, clock: Callable[[], float], progress: Progress) -> dict[Way, list[Trial]]:
    """Each way's best fleets; a way begins with the limits that were best for those before it."""
    seconds = None if budget.seconds is None else budget.seconds * SEARCHING
    budget = Budget(budget.trials, seconds, LEAST_LOOKS)
    parts = ways(ground.space, ground.media)
    total = sum(SHARES[way] for way in parts)
    found: dict[Way, list[Trial]] = {}
    for way, part in parts.items():
        best = max((trials[0] for trials in found.values()), key=lambda each: each.score.value, default=None)
        like = best.fleet.limits if best else ground.problem.base.limits
        share = budget.part(SHARES[way] / total)
        found[way] = _look(ground, part, like, share, clock, _telling(way, share, clock, progress))
    return found


def _look(
    ground: Ground, part: Space, like: Limits, budget: Budget, clock: Callable[[], float], told: Callable[..., None]
) -> list[Trial]:
    """The best fleets of a part of the space."""
    problem = ground.problem

    def of(space: Space, objective: Objective, share: Budget) -> list[Trial]:
        begin = starts(space, ground.seconds, like, STARTS)
        return search(space, objective, begin, problem.seed, share, clock, told)

    goodput = ground.goodput(ground.searching)
    if problem.rate is None or not ground.at_rate:
        return of(part, goodput, budget)
    objective = AtRate(goodput, problem.rate)
    least = min(len(family) for family in part.limits)
    each = budget.part(1 / attempts(least, problem.gpus))
    return fewest(least, problem.gpus, lambda gpus: of(part.of(gpus), objective, each))


def _telling(way: Way, budget: Budget, clock: Callable[[], float], progress: Progress) -> Callable[[int, Trial], None]:
    begun = clock()

    def told(number: int, best: Trial) -> None:
        done = number / budget.trials
        if budget.seconds is not None:
            done = max(done, (clock() - begun) / budget.seconds)
        progress(Step(str(way), min(1.0, done), str(best.fleet.topology), best.score.value))

    return told
