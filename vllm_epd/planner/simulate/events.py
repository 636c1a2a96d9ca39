# SPDX-License-Identifier: Apache-2.0
"""Simulated time: events in order, and what works on something for a while. Pure.

Two things do work. A `Device` is one instance's alone and does one thing after the other. `Cores` are shared: with more
tasks than cores all of them get slower alike (processor sharing): each goes on at the rate

    dv/dt = min(1, cores / sum of the tasks' weights) / (1 + contention * (engines at work on cores - 1))

and `v`, which is the same for all, is the clock of the cores. A task weighs 1, or more where it keeps others busy.
Engines that work at the same time slow each other down even on cores of their own, by caches and memory.
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
        done: what happens then.
        weight: how many cores it keeps busy, where there are enough.
        engines: how many engines work on it, one or none.
        over: whether it has ended.
    """

    __slots__ = ("begun", "done", "end", "engines", "over", "weight")

    def __init__(self, begun: float, end: float, done: Action, weight: float, engines: int = 0) -> None:
        self.begun = begun
        self.end = end
        self.done = done
        self.weight = weight
        self.engines = engines
        self.over = False

    def finish(self) -> None:
        """Its time has come, once."""
        if not self.over:
            self.over = True
            self.done()


class Worker(Protocol):
    """What does work."""

    def start(self, work_s: float, done: Action, weight: float = 1.0) -> Task:
        """Begin work that takes so long if nothing else is in its way."""

    def progress(self, task: Task) -> float:
        """How much of a task's work is done, in seconds."""

    def cut(self, task: Task, work_s: float) -> None:
        """Have a task end after so much of its work, which is not done yet and less than was said."""


class Device:
    """One thing after the other; its clock is the time."""

    __slots__ = ("_events",)

    def __init__(self, events: Events) -> None:
        self._events = events

    def start(self, work_s: float, done: Action, weight: float = 1.0) -> Task:
        """Begin; nothing else may be under way, so that no weight matters."""
        now = self._events.now
        task = Task(now, now + work_s, done, weight)
        self._events.at(task.end, task.finish)
        return task

    def progress(self, task: Task) -> float:
        """What has passed since its beginning."""
        return self._events.now - task.begun

    def cut(self, task: Task, work_s: float) -> None:
        """End it earlier."""
        task.end = max(self._events.now, task.begun + work_s)
        self._events.at(task.end, task.finish)


class Cores:
    """So many cores for any number of tasks; their clock runs as fast as each task gets on."""

    __slots__ = (
        "_clock",
        "_contention",
        "_count",
        "_due",
        "_engines",
        "_events",
        "_looked",
        "_numbers",
        "_queue",
        "_rate",
        "_running",
        "_weight",
    )

    def __init__(self, events: Events, cores: int, contention: float = 0.0) -> None:
        self._events = events
        self._count = cores
        self._contention = contention
        self._engines = 0
        self._clock = 0.0
        self._looked = 0.0
        self._queue: list[tuple[float, int, Task]] = []
        self._running = 0
        self._weight = 0.0
        self._rate = 1.0
        self._numbers = count()
        self._due = -1.0

    def start(self, work_s: float, done: Action, weight: float = 1.0, engines: int = 0) -> Task:
        """Begin beside whatever is under way; a step is the work of one engine, all else of none."""
        self._move_on()
        task = Task(self._clock, self._clock + work_s, done, weight, engines)
        self._running += 1
        self._push(task)
        self._share(weight, engines)
        return task

    def progress(self, task: Task) -> float:
        """What it has got of a core."""
        self._move_on()
        return self._clock - task.begun

    def cut(self, task: Task, work_s: float) -> None:
        """End it earlier."""
        self._move_on()
        task.end = max(self._clock, task.begun + work_s)
        self._push(task)
        self._wait()

    def _push(self, task: Task) -> None:
        heapq.heappush(self._queue, (task.end, next(self._numbers), task))

    def _move_on(self) -> None:
        now = self._events.now
        self._clock += (now - self._looked) * self._rate
        self._looked = now

    def _share(self, weight: float, engines: int) -> None:
        """Count a weight that comes, or goes, and the engine that works there."""
        self._engines += engines
        self._weight = self._weight + weight if self._running else 0.0
        others = max(0, min(self._engines, self._count) - 1)
        self._rate = min(1.0, self._count / self._weight) / (1 + self._contention * others) if self._running else 1.0
        self._wait()

    def _wait(self) -> None:
        """Look when the task is over that is next, unless that has been asked for already."""
        queue = self._queue
        while queue and queue[0][2].over:  # it was cut, and its earlier end has been
            heapq.heappop(queue)
        if not queue:
            self._due = -1.0
            return
        due = self._events.now + max(0.0, queue[0][0] - self._clock) / self._rate
        if due != self._due:
            self._due = due
            self._events.at(due, self._end)

    def _end(self) -> None:
        """End the task in front, if it is time; the clock shows exactly its end, whatever rounding says."""
        if self._events.now != self._due:
            return
        end, _, task = heapq.heappop(self._queue)
        self._looked, self._clock, self._due = self._due, end, -1.0
        self._running -= 1
        self._share(-task.weight, -task.engines)
        task.finish()


class EngineOnCores:
    """What steps run on where there is no device: cores, on which they meet the steps of other engines."""

    __slots__ = ("_cores", "cut", "progress")

    def __init__(self, cores: Cores) -> None:
        self._cores = cores
        self.cut = cores.cut
        self.progress = cores.progress

    def start(self, work_s: float, done: Action, weight: float = 1.0) -> Task:
        """Begin beside whatever is under way."""
        return self._cores.start(work_s, done, weight, engines=1)
