# SPDX-License-Identifier: Apache-2.0
"""How much of this machine others use meanwhile: a run on shared cores says something only where that is little."""

import time
from dataclasses import dataclass
from types import TracebackType
from typing import Self

import psutil


@dataclass
class Foreign:
    """Counts the processor time of all processes that do not come from this one, while the context is open.

    Attributes:
        share: of all cores, from 0 to 1.
        own_s: what this process and those that it has started have used.
    """

    share: float = 0.0
    own_s: float = 0.0

    def __enter__(self) -> Self:
        self._begin, self._all, self._own = time.monotonic(), _busy_s(), _own_s()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        capacity = (time.monotonic() - self._begin) * (psutil.cpu_count() or 1)
        self.own_s = _own_s() - self._own
        self.share = max(0.0, _busy_s() - self._all - self.own_s) / capacity


def _busy_s() -> float:
    times = psutil.cpu_times()
    return float(sum(times) - times.idle - times.iowait - times.guest - times.guest_nice)


def _own_s() -> float:
    """Of this process and its descendants, those that have ended included."""
    me = psutil.Process()
    seconds = 0.0
    for process in (me, *me.children(recursive=True)):
        try:
            times = process.cpu_times()
        except psutil.NoSuchProcess:
            continue
        seconds += times.user + times.system + times.children_user + times.children_system
    return seconds
