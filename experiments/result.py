# SPDX-License-Identifier: Apache-2.0
"""What an experiment comes to, and how it is kept as JSON."""

import math
from pathlib import Path

import msgspec

Value = float | str | None
"""A number, a word such as `OOM`, or nothing where the paper or we have none."""

DIGITS = 4
"""Significant ones that are kept; seeds differ by far more."""


class Cell(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One number of a table.

    Attributes:
        variant: of the profile that it was simulated on; empty where there is one.
        row: what it is of.
        column: the same.
        paper: the paper's value.
        ours: the mean over seeds.
        deviation: standard deviation over seeds; None where nothing is drawn.
        unit: of the values.
    """

    variant: str
    row: str
    column: str
    paper: Value
    ours: Value
    deviation: float | None = None
    unit: str = ""

    @property
    def ratio(self) -> float | None:
        """Ours to the paper's; None where one of them is no number, or the paper's is 0."""
        if isinstance(self.paper, str) or isinstance(self.ours, str) or not self.paper or self.ours is None:
            return None
        return self.ours / self.paper


class Curve(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One line of a figure.

    Attributes:
        panel: of the figure.
        variant: as of a cell.
        label: what it is of.
        x: ascending.
        y: means over seeds.
        deviation: standard deviations over seeds.
    """

    panel: str
    variant: str
    label: str
    x: tuple[float, ...]
    y: tuple[float, ...]
    deviation: tuple[float, ...]


class Findings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a kind of experiment finds.

    Attributes:
        cells: of a table.
        curves: of a figure.
        remarks: what was seen, in sentences.
    """

    cells: tuple[Cell, ...]
    curves: tuple[Curve, ...] = ()
    remarks: tuple[str, ...] = ()


class Made(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How a result came about.

    Attributes:
        commit: of this repository, with `+` if files had been changed since.
        machine: what it was computed on; the result does not depend on it.
        versions: of what was used, by name.
        seconds: that it took.
    """

    commit: str
    machine: str
    versions: dict[str, str]
    seconds: float


class Result(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A file in `results/`.

    Attributes:
        name: of the experiment.
        title: what it shows.
        origin: what stands behind our numbers.
        where_off: why they are not the paper's.
        findings: what was found.
        made: how.
    """

    name: str
    title: str
    origin: str
    where_off: str
    findings: Findings
    made: Made


def rounded(value: float) -> float:
    """As it is kept."""
    return float(f"{value:.{DIGITS}g}") if math.isfinite(value) else value


def save(result: Result, path: Path) -> None:
    """Write a result."""
    path.write_bytes(msgspec.json.format(_with_ratios(result), indent=1) + b"\n")


def load(path: Path) -> Result:
    """Read a result."""
    values = msgspec.json.decode(path.read_bytes())
    for cell in values["findings"]["cells"]:
        del cell["ratio"]
    return msgspec.convert(values, Result)


def _with_ratios(result: Result) -> bytes:
    """The result in JSON, whose cells show what follows from them too."""
    values = msgspec.to_builtins(result)
    for shown, cell in zip(values["findings"]["cells"], result.findings.cells, strict=True):
        shown["ratio"] = None if cell.ratio is None else rounded(cell.ratio)
    return msgspec.json.encode(values)
