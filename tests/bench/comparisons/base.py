# SPDX-License-Identifier: Apache-2.0
"""What a comparison is."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from tests.bench.results import Results


@dataclass(frozen=True, slots=True)
class Row:
    """One number of ours beside the same number of something else; less is better.

    Attributes:
        target: the largest ratio that is good enough; None where a number is only for information.
    """

    name: str
    ours: float
    reference: float
    unit: str
    target: float | None = None

    @property
    def ratio(self) -> float:
        return self.ours / self.reference

    @property
    def ok(self) -> bool | None:
        return None if self.target is None else self.ratio <= self.target


Comparison = Callable[[Results], Iterable[Row]]
"""The rows for what was measured; none where a system is missing."""
