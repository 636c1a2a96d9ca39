# SPDX-License-Identifier: Apache-2.0
"""What an instance does on the cores of its host: the work of its API server, one thing after the other. Pure.

Taking up a call and preprocessing media is the work of one process, whatever cores are idle beside it.
"""

from collections import deque
from collections.abc import Callable
from functools import partial

from vllm_epd.planner.simulate.events import Action, Cores, Events

Note = Callable[[float, float], None]


class Station:
    """So many tasks at once, the others wait in the order in which they came."""

    __slots__ = ("_at_once", "_cores", "_events", "_running", "_waiting")

    def __init__(self, events: Events, cores: Cores, at_once: int) -> None:
        self._events = events
        self._cores = cores
        self._at_once = at_once
        self._running = 0
        self._waiting: deque[tuple[float, Action, Note | None]] = deque()

    def add(self, work_s: float, done: Action, note: Note | None = None) -> None:
        """Have a task done that takes so long on one core; `note` is told when it began and ended."""
        self._waiting.append((work_s, done, note))
        self._go_on()

    def _go_on(self) -> None:
        while self._waiting and self._running < self._at_once:
            work_s, done, note = self._waiting.popleft()
            self._running += 1
            self._cores.start(work_s, partial(self._end, self._events.now, done, note))

    def _end(self, begun: float, done: Action, note: Note | None) -> None:
        self._running -= 1
        if note is not None:
            note(begun, self._events.now)
        done()
        self._go_on()
