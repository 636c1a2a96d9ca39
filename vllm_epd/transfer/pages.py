# SPDX-License-Identifier: Apache-2.0
"""Which pages of a region are free, as runs of neighbours: an item of many pages is a few runs. Pure."""

from bisect import bisect_left
from collections.abc import Iterable
from typing import NamedTuple


class Run(NamedTuple):
    """Neighbouring pages: `length` of them from page `first` on."""

    first: int
    length: int

    @property
    def end(self) -> int:
        """The page after the last one."""
        return self.first + self.length


class FreePages:
    """The free pages of a region of `count` pages; all are at first.

    Attributes:
        count: how many are free.
    """

    def __init__(self, count: int) -> None:
        self.count = count
        self._runs = [Run(0, count)]

    def take(self, wanted: int) -> tuple[Run, ...]:
        """Take `wanted` pages, of which so many are free: one run where there is one, otherwise as few as possible.

        What fits best goes first, so that large runs stay large. The runs come in order of their place.
        """
        assert 0 < wanted <= self.count, f"{wanted} pages are wanted, {self.count} are free"
        self.count -= wanted
        taken = []
        while wanted:
            fitting = [run for run in self._runs if run.length >= wanted]
            chosen = min(fitting, key=_size) if fitting else max(self._runs, key=_size)
            taken.append(self._cut(chosen, min(wanted, chosen.length)))
            wanted -= taken[-1].length
        return tuple(sorted(taken))

    def give(self, runs: Iterable[Run]) -> None:
        """Give pages back, none of which is free."""
        for run in runs:
            self.count += run.length
            at = bisect_left(self._runs, run)
            if at < len(self._runs) and run.end == self._runs[at].first:
                run = Run(run.first, run.length + self._runs.pop(at).length)
            if at and self._runs[at - 1].end == run.first:
                before = self._runs.pop(at - 1)
                at, run = at - 1, Run(before.first, before.length + run.length)
            self._runs.insert(at, run)

    def _cut(self, run: Run, count: int) -> Run:
        """Take the first `count` pages of a free run."""
        at = bisect_left(self._runs, run)
        if count < run.length:
            self._runs[at] = Run(run.first + count, run.length - count)
        else:
            del self._runs[at]
        return Run(run.first, count)


def _size(run: Run) -> int:
    return run.length
