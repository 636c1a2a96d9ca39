# SPDX-License-Identifier: Apache-2.0
"""Many steps at once that do nothing but generate, for the same sequences. Pure."""

from math import ceil, sqrt

from vllm_epd.planner.profile.costs import decode_s, decode_steps_s
from vllm_epd.planner.profile.profile import DecodeCost
from vllm_epd.planner.simulate.events import Task, Worker

_CLOSE = 1e-9
"""Of a step, within which a boundary counts as reached."""


class Generation:
    """Steps of one batch, until one of its sequences ends or somebody comes."""

    __slots__ = ("_context", "_cost", "begun", "sequences", "steps", "task")

    def __init__(self, cost: DecodeCost, sequences: int, context: float, steps: int, begun: float) -> None:
        self._cost = cost
        self._context = context
        self.sequences = sequences
        self.steps = steps
        self.begun = begun
        self.task: Task | None = None

    def seconds(self, steps: int) -> float:
        """What the first so many of them take."""
        return decode_steps_s(self._cost, self.sequences, self._context, steps)

    def cut(self, worker: Worker) -> None:
        """End with the step that is under way."""
        assert self.task is not None
        steps = self._begun_by(worker.progress(self.task))
        if steps < self.steps:
            self.steps = steps
            worker.cut(self.task, self.seconds(steps))

    def _begun_by(self, progress: float) -> int:
        """The number of steps of which the last is the first to end at or after so much work.

        n steps take `n a + n (n - 1) b / 2` with `a` for the first and `b` more for each one after that.
        """
        first = decode_s(self._cost, self.sequences, self._context)
        grows = self._cost.per_context_s * self.sequences
        if grows:
            half = first - grows / 2
            steps = (sqrt(half * half + 2 * grows * progress) - half) / grows
        else:
            steps = progress / first
        return min(self.steps, max(1, ceil(steps - _CLOSE)))
