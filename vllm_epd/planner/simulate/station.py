# SPDX-License-Identifier: Apache-2.0
"""What an instance does on the cores of its host, one item after the other: preprocessing in its API server. Pure."""

from collections import deque
from collections.abc import Callable

from vllm_epd.planner.simulate.events import Action, Cores


class Station:
    """So many tasks at once, the others wait in the order in which they came."""

    __slots__ = ("_at_once", "_cores", "_running", "_waiting")

    def __init__(self, cores: Cores, at_once: int) -> None:
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
            self._cores.start(work_s, self._ended(done))

    def _ended(self, done: Action) -> Callable[[], None]:
        def ended() -> None:
            self._running -= 1
            done()
            self._go_on()

        return ended
