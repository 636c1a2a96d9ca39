# SPDX-License-Identifier: Apache-2.0
"""Results for people: tables on the terminal."""

from collections.abc import Sequence
from itertools import groupby

from rich.console import Console
from rich.table import Table

from experiments.result import Cell, Result, Value


def show(result: Result, console: Console) -> None:
    """A result as tables, one for each variant."""
    for variant, cells in groupby(result.findings.cells, key=lambda cell: cell.variant):
        console.print(_table(f"{result.name}: {result.title}" + (f" [{variant}]" if variant else ""), list(cells)))
    for remark in (*result.findings.remarks, result.where_off):
        console.print(remark)


def _table(title: str, cells: Sequence[Cell]) -> Table:
    table = Table("", "", "paper", "ours", "ratio", title=title, title_justify="left")
    for cell in cells:
        unit = f" {cell.unit}" if cell.unit else ""
        spread = f" ± {cell.deviation:g}" if cell.deviation else ""
        ratio = "" if cell.ratio is None else f"{cell.ratio:.2f}"
        table.add_row(cell.row, cell.column + unit, _text(cell.paper), _text(cell.ours) + spread, ratio)
    return table


def _text(value: Value) -> str:
    if value is None:
        return ""
    return value if isinstance(value, str) else f"{value:g}"
