# SPDX-License-Identifier: Apache-2.0
"""How fast a queue gets shorter, and how long work takes, as measured lately. Pure; the clock is given."""

import math

#: Seconds of waiting after which what was measured counts half.
_HALF_LIFE_S = 30.0
#: How much of what is known the next piece of work replaces.
_WEIGHT = 0.2
_LEAST_S = 1
_MOST_S = 60


class DrainRate:
    """Work that leaves a queue per second, of the time during which the queue is not empty."""

    def __init__(self) -> None:
        self._work = 0.0
        self._waited_s = 0.0
        self._since: float | None = None

    def begin(self, now: float) -> None:
        """The queue is not empty any more."""
        self._since = now

    def note(self, now: float, work: float) -> None:
        """Somebody has left the queue to be served."""
        if self._since is None:
            return
        passed = max(0.0, now - self._since)
        kept = 0.5 ** (passed / _HALF_LIFE_S)
        self._work = self._work * kept + work
        self._waited_s = self._waited_s * kept + passed
        self._since = now

    def end(self) -> None:
        """The queue is empty."""
        self._since = None

    def wait_s(self, work: float) -> float | None:
        """How long so much work takes to leave; None while nothing has been measured."""
        if not self._work or not self._waited_s:
            return None
        return work * self._waited_s / self._work


class Pace:
    """How long the instances of a stage have taken for a piece of work, with all that they do at the same time."""

    def __init__(self) -> None:
        self._s_per_token: float | None = None

    def note(self, work: float, seconds: float) -> None:
        """So many tokens have taken so long."""
        if work <= 0:
            return
        known, new = self._s_per_token, seconds / work
        self._s_per_token = new if known is None else known + _WEIGHT * (new - known)

    def seconds(self, work: float) -> float:
        """How long so much work is likely to take; 0 while nothing has been measured."""
        return 0.0 if self._s_per_token is None else work * self._s_per_token


def retry_after_s(wait_s: float | None) -> int:
    """What a client that is refused is told: whole seconds, neither at once nor never."""
    return _LEAST_S if wait_s is None else min(_MOST_S, max(_LEAST_S, math.ceil(wait_s)))
