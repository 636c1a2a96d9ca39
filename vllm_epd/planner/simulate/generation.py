# SPDX-License-Identifier: Apache-2.0
"""The sequences that one instance generates for, and steps that are taken together. Pure.

While nobody joins and nobody leaves, step i = 0, 1, … of n sequences with c tokens of context takes `a + b i`, with

    a = base + per_sequence n + per_context c        b = per_context n

so that k steps take `k a + b k (k - 1) / 2` (`costs.decode_steps_s`), and which step is under way after some time is
the root of a square. So a batch goes on to the next end of one of its sequences in one piece. Every sequence generates
a token a step: its end is a number of steps, counted from the instance's first, that never changes, and what an event
costs grows with the logarithm of the batch.
"""

from heapq import heappop, heappush
from math import ceil, sqrt

from vllm_epd.planner.profile.costs import decode_s, decode_steps_s
from vllm_epd.planner.profile.profile import DecodeCost
from vllm_epd.planner.simulate.jobs import Journey

_CLOSE = 1e-9
"""Of a step, within which a boundary counts as reached."""


class Generation:
    """The running batch of one instance.

    Attributes:
        sequences: how many are in it.
        context: tokens that the next step looks at: prompts, and what has been generated.
        steps: that the instance has done.
    """

    __slots__ = ("_cost", "_ends", "_joined", "context", "sequences", "steps")

    def __init__(self, cost: DecodeCost) -> None:
        self.sequences = 0
        self.context = 0
        self.steps = 0
        self._cost = cost
        self._ends: list[tuple[int, int, Journey]] = []
        self._joined = 0

    def join(self, journey: Journey) -> None:
        """Take in a sequence that has its first token and lacks at least one."""
        self._joined += 1
        heappush(self._ends, (self.steps + journey.output - 1, self._joined, journey))
        self.sequences += 1
        self.context += journey.prompt + 1

    def until_next_end(self) -> int:
        """Steps until one of them has all its tokens; there is at least one."""
        return self._ends[0][0] - self.steps

    def seconds(self, steps: int) -> float:
        """What the next so many steps take."""
        return decode_steps_s(self._cost, self.sequences, self.context, steps)

    def begun_after(self, progress: float, most: int) -> int:
        """The number of steps, up to `most`, of which the last is the first to end at or after so much work."""
        first = decode_s(self._cost, self.sequences, self.context)
        grows = self._cost.per_context_s * self.sequences
        half = first - grows / 2
        divisor = half + sqrt(half * half + 2 * grows * progress)
        steps = 2 * progress / divisor if divisor else 0.0
        return min(most, max(1, ceil(steps - _CLOSE)))

    def advance(self, steps: int) -> list[Journey]:
        """Do so many; those that have all their tokens leave."""
        self.steps += steps
        self.context += self.sequences * steps
        ended = []
        while self._ends and self._ends[0][0] == self.steps:
            journey = heappop(self._ends)[2]
            self.sequences -= 1
            self.context -= journey.whole
            ended.append(journey)
        return ended
