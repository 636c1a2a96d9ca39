# SPDX-License-Identifier: Apache-2.0
"""The part of requests that have what is promised, over the rate, of several systems. Pure."""

from collections.abc import Iterator, Sequence
from statistics import fmean

import msgspec

from experiments.result import Cell, Curve, Findings, rounded
from experiments.setting import Drawn, System, Variant, over_seeds, poisson, profile_of
from vllm_epd.planner.profile.profile import Profile
from vllm_epd.planner.search.objective import Slo, attainment
from vllm_epd.planner.simulate.run import simulate
from vllm_epd.planner.workload.spec import RequestClass

EQUAL = 0.005
"""Attainments no further apart are the same."""


class Panel(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One of a figure.

    Attributes:
        profile: of the model.
        requests: what they are like.
        ttft_s: what is promised.
        tpot_s: the same.
        rates: requests in a second.
    """

    profile: str
    requests: RequestClass
    ttft_s: float
    tpot_s: float
    rates: tuple[float, ...]


class Attainment(Drawn, frozen=True, kw_only=True, tag="attainment"):
    """A figure of attainments.

    Attributes:
        share: of requests that must have what is promised for a rate to count as goodput.
        variants: of profiles.
        systems: in the order that the paper has them in, the best first.
        panels: of the figure.
    """

    share: float = 0.9
    variants: tuple[Variant, ...]
    systems: dict[str, System]
    panels: dict[str, Panel]


def run(experiment: Attainment) -> Findings:
    """Simulate all curves."""
    curves: list[Curve] = []
    cells: list[Cell] = []
    for variant in experiment.variants:
        for name, panel in experiment.panels.items():
            found = list(_curves(experiment, variant, name, panel))
            curves += found
            cells += _cells(experiment, found)
    return Findings(tuple(cells), tuple(curves))


def _curves(experiment: Attainment, variant: Variant, name: str, panel: Panel) -> Iterator[Curve]:
    profile = profile_of(panel.profile, variant)
    slo = Slo(panel.ttft_s, panel.tpot_s)
    for label, system in experiment.systems.items():
        points = [_point(experiment, panel, system, profile, slo, rate) for rate in panel.rates]
        means, deviations = zip(*points, strict=True)
        yield Curve(name, variant, label, panel.rates, means, deviations)


def _point(
    experiment: Attainment, panel: Panel, system: System, profile: Profile, slo: Slo, rate: float
) -> tuple[float, float]:
    def at(seed: int) -> float:
        requests = poisson(panel.requests, rate, experiment.count, seed)
        return attainment(simulate(system.fleet, profile, requests), slo)

    return over_seeds(experiment.seeds, at)


def _cells(experiment: Attainment, curves: Sequence[Curve]) -> Iterator[Cell]:
    """Of one panel: what each system comes to, and in which order."""
    for curve in curves:
        yield Cell(curve.variant, curve.panel, f"goodput of {curve.label}", None, _goodput(curve, experiment.share))
    means = {curve.label: rounded(fmean(curve.y)) for curve in curves}
    for label, mean in means.items():
        yield Cell(curves[0].variant, curves[0].panel, f"mean attainment of {label}", None, mean)
    order = " > ".join(experiment.systems)
    yield Cell(curves[0].variant, curves[0].panel, "order", order, _order(means))


def _goodput(curve: Curve, share: float) -> float:
    """The rate at which the curve first goes through the share; the last one if it never does, 0 if it always is."""
    if curve.y[0] < share:
        return 0.0
    for (x, y), (next_x, next_y) in zip(
        zip(curve.x, curve.y, strict=True), zip(curve.x[1:], curve.y[1:], strict=True), strict=False
    ):
        if next_y < share:
            return rounded(x + (next_x - x) * (y - share) / (y - next_y))
    return curve.x[-1]


def _order(means: dict[str, float]) -> str:
    ordered = sorted(means, key=lambda label: -means[label])
    text = ordered[0]
    for before, after in zip(ordered, ordered[1:], strict=False):
        text += f" {'=' if means[before] - means[after] <= EQUAL else '>'} {after}"
    return text
