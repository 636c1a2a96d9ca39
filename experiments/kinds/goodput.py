# SPDX-License-Identifier: Apache-2.0
"""The goodputs of several fleets of as many devices, for several workloads. Pure."""

from collections.abc import Iterator, Sequence

import msgspec

from experiments.result import Cell, Findings, rounded
from experiments.setting import Drawn, System, summary
from vllm_epd.errors import ConfigError
from vllm_epd.planner.fleet import Fleet
from vllm_epd.planner.profile.profile import Profile
from vllm_epd.planner.profile.store import load_profile
from vllm_epd.planner.search.demand import capacity, sizes, stage_seconds
from vllm_epd.planner.search.objective import Goodput, Slo
from vllm_epd.planner.simulate.outcome import Outcome
from vllm_epd.planner.simulate.run import simulate
from vllm_epd.planner.workload.generate import generate
from vllm_epd.planner.workload.requests import Request
from vllm_epd.planner.workload.spec import Poisson, RequestClass, WorkloadSpec

LEAD = "lead of the better ones"
LEAST = "least lead of all seeds"
START = 0.8
"""The part of its capacity at which the search for a fleet's goodput begins."""


class Case(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One workload.

    Attributes:
        profile: of the model.
        classes: what requests are like.
        ttft_s: what is promised.
        tpot_s: the same.
        better: topologies of which the best should be better than the best of all others.
        others: topologies of as many devices.
    """

    profile: str
    classes: tuple[RequestClass, ...]
    ttft_s: float
    tpot_s: float
    better: tuple[str, ...]
    others: tuple[str, ...]


class Goodputs(Drawn, frozen=True, kw_only=True, tag="goodput"):
    """Several workloads.

    Attributes:
        system: how all fleets are run; its topology is replaced.
        cases: the workloads.
    """

    system: System
    cases: dict[str, Case]


def run(experiment: Goodputs) -> Findings:
    """Find all goodputs."""
    return Findings(tuple(cell for name, case in experiment.cases.items() for cell in _cells(experiment, name, case)))


def _cells(experiment: Goodputs, name: str, case: Case) -> Iterator[Cell]:
    """Each fleet's goodput, and how far the better ones are in front, seed by seed."""
    profile = load_profile(case.profile)
    systems = {each: msgspec.structs.replace(experiment.system, topology=each) for each in case.better + case.others}
    if len({system.fleet.topology.size for system in systems.values()}) > 1:
        raise ConfigError(f"{name}: fleets to compare need as many devices as each other, got {', '.join(systems)}")
    found = {
        each: [_goodput(experiment, case, system.fleet, profile, seed) for seed in range(experiment.seeds)]
        for each, system in systems.items()
    }
    for each, values in found.items():
        mean, deviation = summary(values)
        yield Cell("", name, each, None, mean, deviation, "requests/s")
    leads = [_best(found, case.better, seed) - _best(found, case.others, seed) for seed in range(experiment.seeds)]
    mean, deviation = summary(leads)
    yield Cell("", name, LEAD, None, mean, deviation, "requests/s")
    yield Cell("", name, LEAST, None, rounded(min(leads)), None, "requests/s")


def _best(found: dict[str, list[float]], topologies: Sequence[str], seed: int) -> float:
    return max(found[each][seed] for each in topologies)


def _goodput(experiment: Goodputs, case: Case, fleet: Fleet, profile: Profile, seed: int) -> float:
    slo = Slo(case.ttft_s, case.tpot_s)
    requests = generate(WorkloadSpec(Poisson(1.0), case.classes, requests=experiment.count), seed)
    seconds = stage_seconds(profile, [sizes(profile, each) for each in requests], fleet.limits, slo.tpot_s)

    def simulated(tried: Fleet, arriving: Sequence[Request]) -> Outcome:
        return simulate(tried, profile, arriving)

    goodput = Goodput(simulated, requests, slo, lambda tried: capacity(seconds, tried.topology))
    return goodput.near(fleet, START * goodput.capacity(fleet)).rate
