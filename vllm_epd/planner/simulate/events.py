# SPDX-License-Identifier: Apache-2.0
"""Simulated time: events in order, and what works on something for a while. Pure.

Two things do work. A `Device` is one instance's alone and does one thing after the other. `Cores` are shared: with more
tasks than cores all of them get slower alike (processor sharing), and no task uses more than one core.
"""

import heapq
from collections.abc import Callable
from itertools import count
from typing import Protocol

Action = Callable[[], None]


class Events:
    """Actions at times, those of one time in the order in which they were asked for.

    Attributes:
        now: the time, in seconds.
    """

    __slots__ = ("_numbers", "_queue", "now")

    def __init__(self) -> None:
        self.now = 0.0
        self._queue: list[tuple[float, int, Action]] = []
        self._numbers = count()

    def at(self, when: float, action: Action) -> None:
        """Have something done at a time that has not passed."""
        heapq.heappush(self._queue, (when, next(self._numbers), action))

    def after(self, seconds: float, action: Action) -> None:
        """Have something done in a while."""
        heapq.heappush(self._queue, (self.now + seconds, next(self._numbers), action))

    def run(self) -> None:
        """Do everything, also what is asked for on the way, until there is nothing left."""
        queue = self._queue
        while queue:
            self.now, _, action = heapq.heappop(queue)
            action()


class Task:
    """Some work that is being done.

    Attributes:
        begun: what its worker's clock showed at its beginning.
        end: what it will show at its end.
    """

    __slots__ = ("begun", "done", "end", "stamp")

    def __init__(self, begun: float, end: float, done: Action) -> None:
        self.begun = begun
        self.end = end
        self.done = done
        self.stamp = 0


class Worker(Protocol):
    """What does work."""

    def start(self, work_s: float, done: Action) -> Task:
        """Begin work that takes so long if nothing else is in its way."""

    def progress(self, task: Task) -> float:
        """How much of a task's work is done, in seconds."""

    def cut(self, task: Task, work_s: float) -> None:
        """Have a task end after so much of its work, which is not done yet."""


class Device:
    """One thing after the other; its clock is the time."""

    __slots__ = ("_events",)

    def __init__(self, events: Events) -> None:
        self._events = events

    def start(self, work_s: float, done: Action) -> Task:
        """Begin; nothing else may be under way."""
        task = Task(self._events.now, self._events.now + work_s, done)
        self._wait(task)
        return task

    def progress(self, task: Task) -> float:
        """What has passed since its beginning."""
        return self._events.now - task.begun

    def cut(self, task: Task, work_s: float) -> None:
        """End it earlier."""
        task.stamp += 1
        task.end = max(self._events.now, task.begun + work_s)
        self._wait(task)

    def _wait(self, task: Task) -> None:
        stamp = task.stamp

        def over() -> None:
            if task.stamp == stamp:
                task.done()

        self._events.at(task.end, over)


class Cores:
    """So many cores for any number of tasks; their clock runs as fast as each task gets on."""

    __slots__ = ("_clock", "_count", "_events", "_looked", "_numbers", "_queue", "_running", "_stamp")

    def __init__(self, events: Events, cores: int) -> None:
        self._events = events
        self._count = cores
        self._clock = 0.0
        self._looked = 0.0
        self._queue: list[tuple[float, int, int, Task]] = []
        self._running = 0
        self._numbers = count()
        self._stamp = 0

    def start(self, work_s: float, done: Action) -> Task:
        """Begin beside whatever is under way."""
        self._move_on()
        task = Task(self._clock, self._clock + work_s, done)
        self._running += 1
        self._push(task)
        self._wait()
        return task

    def progress(self, task: Task) -> float:
        """What it has got of a core."""
        self._move_on()
        return self._clock - task.begun

    def cut(self, task: Task, work_s: float) -> None:
        """End it earlier."""
        self._move_on()
        task.stamp += 1
        task.end = max(self._clock, task.begun + work_s)
        self._push(task)
        self._wait()

    def _push(self, task: Task) -> None:
        heapq.heappush(self._queue, (task.end, next(self._numbers), task.stamp, task))

    def _move_on(self) -> None:
        now = self._events.now
        if self._running:
            self._clock += (now - self._looked) * self._rate()
        self._looked = now

    def _rate(self) -> float:
        return min(1.0, self._count / self._running)

    def _wait(self) -> None:
        """Look again when the next task is over, if nothing begins or ends before."""
        self._stamp += 1
        while self._queue and self._queue[0][3].stamp != self._queue[0][2]:
            heapq.heappop(self._queue)
        if not self._queue:
            return
        stamp = self._stamp
        end = self._queue[0][0]

        def over() -> None:
            if self._stamp == stamp:
                self._end(end)

        self._events.after(max(0.0, end - self._clock) / self._rate(), over)

    def _end(self, clock: float) -> None:
        """End the task in front; the clock shows exactly its end, whatever rounding says."""
        self._looked, self._clock = self._events.now, clock
        _, _, _, task = heapq.heappop(self._queue)
        self._running -= 1
        self._wait()
        task.done()
