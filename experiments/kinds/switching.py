# SPDX-License-Identifier: Apache-2.0
"""A fleet whose traffic changes, with and without instances that change their roles. Pure."""

from collections.abc import Iterator
from dataclasses import replace
from statistics import fmean
from typing import Any

import msgspec

from experiments.result import Cell, Findings
from experiments.setting import Drawn, System, Variant, poisson, profile_of, summary
from vllm_epd.planner.profile.profile import Profile
from vllm_epd.planner.simulate.metrics import summarize
from vllm_epd.planner.simulate.run import simulate
from vllm_epd.planner.simulate.switching import SWITCH, Switches, Threshold
from vllm_epd.planner.workload.requests import Request
from vllm_epd.planner.workload.spec import RequestClass

COLUMNS = {"mean latency": "s", "mean TTFT": "s", "mean TPOT": "s"}


class Period(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Traffic of one kind, one period after the other.

    Attributes:
        share: of all requests.
        requests: what they are like.
    """

    share: float
    requests: RequestClass


class Row(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A fleet, and what the paper has for it.

    Attributes:
        system: what is run.
        paper: of each column.
        switches: whether roles change.
    """

    system: System
    paper: tuple[float, float, float]
    switches: bool


class SwitchingRoles(Drawn, frozen=True, kw_only=True, tag="switching"):
    """A table of fleets with and without role switches.

    Attributes:
        profile: of the model.
        rate: requests in a second.
        variants: of the profile.
        periods: the traffic.
        interval_s: between looks at the queues.
        seconds: that an instance does nothing in a switch that involves encode; how long it takes until the instance
            has finished what it had follows from the simulation.
        rows: which fleets.
        relative: pairs of rows, of which the first one's values are shown as parts of the second one's.
    """

    profile: str
    rate: float
    variants: tuple[Variant, ...]
    periods: tuple[Period, ...]
    interval_s: float
    seconds: float
    rows: dict[str, Row]
    relative: tuple[tuple[str, str], ...]


def run(experiment: SwitchingRoles) -> Findings:
    """Simulate all rows."""
    return Findings(tuple(cell for variant in experiment.variants for cell in _cells(experiment, variant)))


def _cells(experiment: SwitchingRoles, variant: Variant) -> Iterator[Cell]:
    profile = profile_of(experiment.profile, variant)
    means: dict[str, list[float]] = {}
    for name, row in experiment.rows.items():
        runs = [_measured(experiment, row, profile, seed) for seed in range(experiment.seeds)]
        *values, switches = [summary(each) for each in zip(*runs, strict=True)]
        means[name] = [mean for mean, _ in values]
        for (column, unit), paper, (mean, deviation) in zip(COLUMNS.items(), row.paper, values, strict=True):
            yield Cell(variant, name, column, paper, mean, deviation, unit)
        yield Cell(variant, name, "switches", 3 if row.switches else 0, *switches)
    for first, second in experiment.relative:
        one, other = experiment.rows[first].paper, experiment.rows[second].paper
        for index, column in enumerate(COLUMNS):
            ours = summary([means[first][index] / means[second][index]])[0]
            paper = summary([one[index] / other[index]])[0]
            yield Cell(variant, f"{first} / {second}", column, paper, ours)


def _measured(experiment: SwitchingRoles, row: Row, profile: Profile, seed: int) -> tuple[float, float, float, float]:
    """What the columns say, and how many switches there were."""
    switched: list[str] = []

    def trace(instance: str, what: str, *_: Any) -> None:
        if what == SWITCH:
            switched.append(instance)

    switches = None
    if row.switches:
        switches = Switches(Threshold(), experiment.interval_s, seconds=experiment.seconds)
    outcome = simulate(row.system.fleet, profile, _requests(experiment, seed), switches=switches, trace=trace)
    tpot = fmean(each.tpot_s for each in outcome.served)
    found = summarize(outcome)
    return found.e2e.mean, found.ttft.mean, tpot, float(len(switched))


def _requests(experiment: SwitchingRoles, seed: int) -> list[Request]:
    """The periods, each from the last arrival of the one before on."""
    made: list[Request] = []
    for index, period in enumerate(experiment.periods):
        begun = made[-1].at if made else 0.0
        count = max(1, round(period.share * experiment.count))
        drawn = poisson(period.requests, experiment.rate, count, len(experiment.periods) * seed + index)
        made += [replace(each, number=len(made) + each.number, at=begun + each.at) for each in drawn]
    return made
