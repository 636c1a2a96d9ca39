# SPDX-License-Identifier: Apache-2.0
"""`python -m experiments.show NAME [...] | all`: results that are there, as tables on the terminal and as figures."""

import argparse
import sys
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path

from rich.console import Console
from rich.table import Table

from experiments.figures import draw
from experiments.result import Cell, Result, Value, load

FOLDER = Path(__file__).parent
RESULTS, FIGURES = FOLDER / "results", FOLDER / "figures"


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


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns its exit code."""
    parser = argparse.ArgumentParser(prog="python -m experiments.show", description=__doc__)
    parser.add_argument("names", nargs="+", metavar="NAME", help="results; `all` for all there are")
    asked = parser.parse_args(arguments).names
    console = Console()
    known = {path.stem: path for path in sorted(RESULTS.glob("*.json"))}
    if unknown := [name for name in asked if name != "all" and name not in known]:
        console.print(f"error: no result of {', '.join(unknown)}; there are {', '.join(known)}", style="red")
        return 2
    for name in known if asked == ["all"] else asked:
        result = load(known[name])
        show(result, console)
        for path in draw(result, FIGURES):
            console.print(f"drawn: {path.relative_to(FOLDER.parent)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
