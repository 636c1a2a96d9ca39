# SPDX-License-Identifier: Apache-2.0
"""The best fleet that a search finds, and fleets that are drawn at random. Pure."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import astuple, dataclass, replace
from random import Random
from statistics import fmean

import msgspec

from experiments.result import Cell, Findings, rounded
from experiments.setting import Drawn, System, Variant, poisson, profile_of, summary
from vllm_epd.planner.fleet import Fleet
from vllm_epd.planner.profile.profile import Profile
from vllm_epd.planner.search.demand import sizes
from vllm_epd.planner.search.families import counts
from vllm_epd.planner.search.needs import Largest, shortage_of
from vllm_epd.planner.search.objective import Goodput, Slo
from vllm_epd.planner.search.search import Budget, search
from vllm_epd.planner.search.space import Choices, Space, build
from vllm_epd.planner.search.starts import start
from vllm_epd.planner.search.traffic import at_rate
from vllm_epd.planner.simulate.outcome import Outcome
from vllm_epd.planner.simulate.run import simulate
from vllm_epd.planner.workload.requests import Request
from vllm_epd.planner.workload.spec import RequestClass
from vllm_epd.topology import Group, Topology
from vllm_epd.types import RoleSet

FAMILY = tuple(map(RoleSet.from_letters, ("E", "P", "D")))
UNITS = ("requests/s", "s", "s")
COLUMNS = ("goodput", "TTFT", "TPOT")
OTHERS = 1000
"""Added to a seed, for requests that were not searched with."""


class Row(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What the paper has: goodput, TTFT and TPOT."""

    paper: tuple[float, float, float]


class Search(Drawn, frozen=True, kw_only=True, tag="search"):
    """A search over topologies of E, P and D, batches of each stage and IRP, against fleets drawn from the same.

    Attributes:
        profile: of the model.
        variants: of it.
        requests: what they are like.
        gpus: of each fleet.
        ttft_s: that is promised to nine of ten requests.
        tpot_s: the same.
        rate: requests in a second at which times are compared.
        system: what all fleets have in common; its topology and batches do not matter.
        batches: that each stage may have.
        trials: fleets that a search looks at.
        drawn: fleets that are drawn for each seed.
        searched: what the paper's optimiser comes to.
        random: what its random fleets come to, in the mean.
    """

    profile: str
    variants: tuple[Variant, ...]
    requests: RequestClass
    gpus: int
    ttft_s: float
    tpot_s: float
    rate: float
    system: System
    batches: tuple[int, ...]
    trials: int
    drawn: int
    searched: Row
    random: Row


@dataclass(frozen=True, slots=True)
class _Worth:
    """What a fleet, or the mean of several, comes to."""

    goodput: float
    ttft_s: float
    tpot_s: float


def run(experiment: Search) -> Findings:
    """Search and draw for each seed; both are compared on other requests than those searched with."""
    cells: list[Cell] = []
    remarks: list[str] = []
    for variant in experiment.variants:
        bench = _Bench(experiment, profile_of(experiment.profile, variant))
        found = [bench.searched(seed) for seed in range(experiment.seeds)]
        searched = [bench.worth([fleet], seed) for seed, fleet in enumerate(found)]
        random = [bench.worth(bench.drawn(seed), seed) for seed in range(experiment.seeds)]
        cells += _cells(variant, "optimiser", searched, experiment.searched)
        cells += _cells(variant, "random", random, experiment.random)
        cells.append(_relative(variant, searched, random, experiment))
        remarks.append(_remark(variant, found))
    return Findings(tuple(cells), remarks=tuple(remarks))


@dataclass(frozen=True, slots=True)
class _Bench:
    """Where fleets are found and measured."""

    experiment: Search
    profile: Profile

    def searched(self, seed: int) -> Fleet:
        """The best one that a search finds."""
        requests = self._requests(seed)
        budget = Budget(self.experiment.trials)
        trials = search(
            self._space(requests), self._objective(requests), (), seed, budget, lambda: 0.0, lambda *_: None
        )
        return trials[0].fleet

    def drawn(self, seed: int) -> list[Fleet]:
        """Fleets of the same space, each as likely as any other."""
        random, space = Random(seed), self._space(self._requests(seed))
        return [_draw(space, random) for _ in range(self.experiment.drawn)]

    def worth(self, fleets: Sequence[Fleet], seed: int) -> _Worth:
        """Their mean, on requests that were not searched with."""
        requests, rate = self._requests(seed + OTHERS), self.experiment.rate
        goodputs = [self._objective(requests).near(fleet, rate, 1.3).rate for fleet in fleets]
        served = [each for fleet in fleets for each in self._simulate(fleet, at_rate(requests, rate)).served]
        return _Worth(fmean(goodputs), fmean(each.ttft_s for each in served), fmean(each.tpot_s for each in served))

    def _requests(self, seed: int) -> Sequence[Request]:
        return poisson(self.experiment.requests, self.experiment.rate, self.experiment.count, seed)

    def _space(self, requests: Sequence[Request]) -> Space:
        each, base = self.experiment.batches, self.experiment.system.fleet
        choices = Choices(
            encode_items=each,
            prefill_sequences=each,
            decode_sequences=each,
            batched_tokens=(base.limits.batched_tokens,),
            policies=("least_loaded",),
            orders=("fcfs",),
            irp_degrees=(base.irp_degree,),
            spreads=(True, False),
        )
        largest = Largest.of(sizes(self.profile, request) for request in requests)
        return build(self.experiment.gpus, [FAMILY], shortage_of(self.profile, base, largest), choices, base)

    def _objective(self, requests: Sequence[Request]) -> Goodput:
        slo = Slo(self.experiment.ttft_s, self.experiment.tpot_s)
        return Goodput(self._simulate, requests, slo, lambda _: self.experiment.rate)

    def _simulate(self, fleet: Fleet, requests: Sequence[Request]) -> Outcome:
        return simulate(fleet, self.profile, requests)


def _draw(space: Space, random: Random) -> Fleet:
    topology = Topology(tuple(map(Group, FAMILY, random.choice(list(counts(space.gpus, len(FAMILY)))))))
    fleet = start(space, topology, random.choice(space.limits[FAMILY]))
    return replace(fleet, spread=random.choice(space.choices.spreads))


def _cells(variant: Variant, row: str, worths: Sequence[_Worth], paper: Row) -> list[Cell]:
    values = [summary(column) for column in zip(*map(astuple, worths), strict=True)]
    told = zip(COLUMNS, UNITS, paper.paper, values, strict=True)
    return [Cell(variant, row, column, theirs, *ours, unit) for column, unit, theirs, ours in told]


def _relative(variant: Variant, searched: Sequence[_Worth], random: Sequence[_Worth], experiment: Search) -> Cell:
    """How many times the goodput of random fleets a search finds."""
    ours = fmean(each.goodput for each in searched) / fmean(each.goodput for each in random)
    paper = experiment.searched.paper[0] / experiment.random.paper[0]
    return Cell(variant, "optimiser / random", COLUMNS[0], rounded(paper), rounded(ours))


def _remark(variant: Variant, found: Sequence[Fleet]) -> str:
    names = Counter(f"{fleet.topology} {'with' if fleet.spread else 'without'} IRP" for fleet in found)
    told = ", ".join(f"{name} {times} times" for name, times in names.most_common())
    return f"{variant}: of {len(found)} searches, {told}."
