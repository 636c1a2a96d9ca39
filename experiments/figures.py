# SPDX-License-Identifier: Apache-2.0
"""Figures of results as files: curves where a result has some, otherwise our values beside the paper's."""

from collections.abc import Sequence
from itertools import groupby
from math import ceil
from pathlib import Path
from typing import TYPE_CHECKING

import matplotlib as mpl
from matplotlib.figure import Figure

from experiments.result import Cell, Curve, Result

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLUMNS = 2
"""Panels beside each other."""
GOAL = 0.9
"""The attainment from which on a rate counts as goodput."""

mpl.rcParams["svg.hashsalt"] = "vllm-epd"  # the same result gives the same file


def draw(result: Result, folder: Path) -> list[Path]:
    """The files of a result, one for each variant; none where it has nothing but words."""
    folder.mkdir(exist_ok=True)
    made = []
    curves, cells = result.findings.curves, result.findings.cells
    for variant in dict.fromkeys(each.variant for each in curves or cells):
        title = result.title + (f" [{variant}]" if variant else "")
        if curves:
            figure = _of_curves(title, [each for each in curves if each.variant == variant])
        else:
            figure = _of_cells(title, [each for each in cells if each.variant == variant and _drawable(each)])
        path = folder / "-".join([result.name, *variant.split()])
        made.append(path.with_suffix(".svg"))
        figure.savefig(made[-1], metadata={"Date": None})
    return made


def _drawable(cell: Cell) -> bool:
    return isinstance(cell.ours, (int, float)) and bool(cell.unit)


def _of_curves(title: str, curves: Sequence[Curve]) -> Figure:
    panels = {name: list(members) for name, members in groupby(curves, key=lambda curve: curve.panel)}
    figure, grid = _grid(title, len(panels))
    for axes, (name, members) in zip(grid, panels.items(), strict=False):
        for curve in members:
            axes.errorbar(curve.x, curve.y, curve.deviation, label=curve.label, marker="o", markersize=3, capsize=2)
        axes.set(title=name, xlabel="requests/s", ylabel="SLO attainment", ylim=(-0.03, 1.03), xscale="log")
        axes.set_xticks(members[0].x, [f"{rate:g}" for rate in members[0].x], rotation=45, fontsize="small")
        axes.minorticks_off()
        axes.axhline(GOAL, color="grey", linewidth=0.8, linestyle=":")
        axes.grid(alpha=0.3)
    grid[0].legend(fontsize="small")
    return figure


def _of_cells(title: str, cells: Sequence[Cell]) -> Figure:
    """A panel for each unit and column if the paper has values, otherwise for each unit and row."""
    by_column = any(isinstance(cell.paper, (int, float)) for cell in cells)
    panels: dict[tuple[str, str], list[Cell]] = {}
    for cell in cells:
        panels.setdefault((cell.column if by_column else cell.row, cell.unit), []).append(cell)
    figure, grid = _grid(title, len(panels))
    for axes, ((name, unit), members) in zip(grid, panels.items(), strict=False):
        labels = [cell.row if by_column else cell.column for cell in members]
        places = range(len(members))
        ours = [float(cell.ours) for cell in members if cell.ours is not None]
        axes.barh(places, ours, xerr=[cell.deviation or 0.0 for cell in members], height=0.6, label="ours", capsize=2)
        paper = [(place, cell.paper) for place, cell in enumerate(members) if isinstance(cell.paper, (int, float))]
        if paper:
            axes.plot([value for _, value in paper], [place for place, _ in paper], "kD", markersize=4, label="paper")
            axes.legend(fontsize="small")
        axes.set_yticks(places, labels, fontsize="small")
        axes.invert_yaxis()
        axes.set(title=name, xlabel=unit)
        axes.grid(axis="x", alpha=0.3)
    return figure


def _grid(title: str, panels: int) -> "tuple[Figure, list[Axes]]":
    rows = ceil(panels / COLUMNS)
    figure = Figure(figsize=(5.0 * COLUMNS, 0.6 + 2.6 * rows), layout="constrained")
    grid = figure.subplots(rows, COLUMNS, squeeze=False)
    for unused in list(grid.flat)[panels:]:
        unused.remove()
    figure.suptitle(title, fontsize="medium", wrap=True)
    return figure, list(grid.flat)[:panels]
