# SPDX-License-Identifier: Apache-2.0
"""A plan as a picture: what each way is worth, and how it does when other traffic comes."""

from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from vllm_epd.planner.search.compare import MEDIA
from vllm_epd.planner.search.planning import Plan

SIZE = (12.0, 4.0)
"""Inches."""


def draw(plan: Plan, file: Path) -> None:
    """Write it, in the format that the file's name asks for."""
    figure = Figure(figsize=SIZE, layout="constrained")
    problem = plan.ground.problem
    figure.suptitle(f"{problem.profile.model} on {problem.profile.hardware.name}: {plan.chosen.whole}")
    media = any(each.goodput for each in plan.sensitivity.values())
    panels = figure.subplots(1, 3 if media else 2)
    _ways(panels[0], plan)
    _rates(panels[1], plan)
    if media:
        _media(panels[2], plan)
    figure.savefig(file)


def _ways(axes: Axes, plan: Plan) -> None:
    names = [f"{each.way}\n{each.whole}" for each in plan.contenders]
    goodputs = [each.goodput for each in plan.contenders]
    errors = [each.goodput * each.error for each in plan.contenders]
    colours = ["C0" if each is plan.chosen else "0.7" for each in plan.contenders]
    axes.barh(names, goodputs, xerr=errors, color=colours)
    axes.invert_yaxis()
    axes.set_xlabel("goodput, requests/s")
    axes.set_title("each way at its best")


def _rates(axes: Axes, plan: Plan) -> None:
    for way, each in plan.sensitivity.items():
        axes.plot(
            list(each.attainment), [100 * share for share in each.attainment.values()], marker="o", label=way.value
        )
    axes.axhline(100 * plan.ground.problem.slo.share, color="0.5", linestyle=":")
    axes.set_xlabel("rate, requests/s")
    axes.set_ylabel("requests with what is promised, %")
    axes.set_title("other rates")
    axes.legend()


def _media(axes: Axes, plan: Plan) -> None:
    goodput = {each.way: each.goodput for each in plan.contenders}
    for way, each in plan.sensitivity.items():
        points = sorted([*each.goodput.items(), (1.0, goodput[way])])
        axes.plot([factor for factor, _ in points], [rate for _, rate in points], marker="o", label=way.value)
    factors = sorted([*MEDIA, 1.0])
    axes.set_xscale("log")
    axes.set_xticks(factors, [f"{factor:g}" for factor in factors])
    axes.minorticks_off()
    axes.set_xlabel("media, in parts of the workload's")
    axes.set_ylabel("goodput, requests/s")
    axes.set_title("other media")
