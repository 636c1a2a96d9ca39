# SPDX-License-Identifier: Apache-2.0
"""What an instance does on the cores of its host, one item after the other: preprocessing in its API server. Pure."""

from collections import deque
from collections.abc import Callable
from functools import partial

from vllm_epd.planner.simulate.events import Action, Cores, Events


class Station:
    """So many tasks at once, the others wait in the order in which they came.

    Attributes:
        noted: told when each began and ended; None if nobody wants to know.
    """

    __slots__ = ("_at_once", "_cores", "_events", "_running", "_waiting", "noted")

    def __init__(self, events: Events, cores: Cores, at_once: int) -> None:
        self.noted: Callable[[float, float], None] | None = None
        self._events = events
        self._cores = cores
        self._at_once = at_once
        self._running = 0
        self._waiting: deque[tuple[float, Action]] = deque()

    def add(self, work_s: float, done: Action) -> None:
        """Have a task done that takes so long on one core."""
        self._waiting.append((work_s, done))
        self._go_on()

    def _go_on(self) -> None:
        while self._waiting and self._running < self._at_once:
            work_s, done = self._waiting.popleft()
            self._running += 1
            self._cores.start(work_s, partial(self._end, self._events.now, done))

    def _end(self, begun: float, done: Action) -> None:
        self._running -= 1
        if self.noted is not None:
            self.noted(begun, self._events.now)
        done()
        self._go_on()
