# SPDX-License-Identifier: Apache-2.0
"""Mean time to first token of several systems under the same requests. Pure."""

from collections.abc import Iterator
from functools import partial
from statistics import fmean

import msgspec

from experiments.result import Cell, Findings, Value, rounded
from experiments.setting import Drawn, System, Variant, over_seeds, poisson, profile_of
from vllm_epd.planner.profile.profile import Profile
from vllm_epd.planner.simulate.run import simulate
from vllm_epd.planner.workload.spec import RequestClass


class Row(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A system, and what the paper has for it.

    Attributes:
        system: what is run.
        paper: seconds, of each column.
    """

    system: System
    paper: tuple[float, ...]


class Ttft(Drawn, frozen=True, kw_only=True, tag="ttft"):
    """A table of times to first token.

    Attributes:
        profile: of the model.
        rate: requests in a second.
        variants: of the profile.
        columns: what requests are like.
        rows: which systems.
        relative: pairs of rows, of which the first one's times are shown as parts of the second one's.
    """

    profile: str
    rate: float
    variants: tuple[Variant, ...]
    columns: dict[str, RequestClass]
    rows: dict[str, Row]
    relative: tuple[tuple[str, str], ...]


def run(experiment: Ttft) -> Findings:
    """Simulate all cells."""
    cells = [cell for variant in experiment.variants for cell in _cells(experiment, variant)]
    return Findings((*cells, *_relative(experiment, cells)))


def _cells(experiment: Ttft, variant: Variant) -> Iterator[Cell]:
    profile = profile_of(experiment.profile, variant)
    for name, row in experiment.rows.items():
        for (column, kind), paper in zip(experiment.columns.items(), row.paper, strict=True):
            once = partial(_mean, experiment, row.system, profile, kind)
            ours, deviation = over_seeds(experiment.seeds, once)
            yield Cell(variant, name, column, paper, ours, deviation, "s")


def _mean(experiment: Ttft, system: System, profile: Profile, kind: RequestClass, seed: int) -> float:
    requests = poisson(kind, experiment.rate, experiment.count, seed)
    return fmean(each.ttft_s for each in simulate(system.fleet, profile, requests).served)


def _relative(experiment: Ttft, cells: list[Cell]) -> Iterator[Cell]:
    known = {(cell.variant, cell.row, cell.column): cell for cell in cells}
    for variant in experiment.variants:
        for first, second in experiment.relative:
            for column in experiment.columns:
                one, other = known[variant, first, column], known[variant, second, column]
                paper, ours = _part(one.paper, other.paper), _part(one.ours, other.ours)
                yield Cell(variant, f"{first} / {second}", column, paper, ours)


def _part(one: Value, other: Value) -> Value:
    return rounded(one / other) if isinstance(one, (int, float)) and isinstance(other, (int, float)) else None
