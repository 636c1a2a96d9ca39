# SPDX-License-Identifier: Apache-2.0
"""Whether and when a request that failed is tried once more. Pure; clock and chance are given."""

from collections.abc import Callable
from random import Random

from vllm_epd.errors import UpstreamError
from vllm_epd.router.failures import BrokenOffError, UnreachableError
from vllm_epd.types import Role

#: Seconds before the first new try, and the longest wait; each wait is twice as long as the last, less some chance.
BACKOFF_S = 0.05
LONGEST_BACKOFF_S = 1.0

#: What instances answer for a failure of their own that may not happen again elsewhere.
_PASSING = frozenset({500, 502, 503})
#: How often a request is tried again after an instance has answered that it failed: that may be the request's fault.
_ANSWERED_TRIES = 1
#: The stage that tries each of its parts again itself.
_TRIED_ELSEWHERE = Role.ENCODE.value


class RetryBudget:
    """How many retries all requests together may make, so that retries do not bring down what is left.

    Each request adds a part of a retry and each retry takes a whole one; besides, some come with time, for a router
    with few requests.
    """

    def __init__(
        self, clock: Callable[[], float], *, ratio: float = 0.2, per_s: float = 10.0, most: float = 100.0
    ) -> None:
        self._clock = clock
        self._ratio = ratio
        self._per_s = per_s
        self._most = most
        self._left = most
        self._at = clock()

    def deposit(self) -> None:
        """A request has come."""
        self._add(self._ratio)

    def withdraw(self) -> bool:
        """Whether a retry may be made; it counts as made."""
        self._add(0.0)
        if self._left < 1.0:
            return False
        self._left -= 1.0
        return True

    def _add(self, retries: float) -> None:
        now = self._clock()
        self._left = min(self._most, self._left + retries + self._per_s * (now - self._at))
        self._at = now


class Tries:
    """The tries of one request."""

    def __init__(self, most: int) -> None:
        """At most `most` after the first."""
        self._left = most
        self._answered_left = _ANSWERED_TRIES
        self._made = 0

    def another(self, error: UpstreamError) -> bool:
        """Whether one more is worth it after `error`; it counts as made."""
        answered = not isinstance(error, (UnreachableError, BrokenOffError))
        if not self._left or error.status not in _PASSING or (answered and not self._answered_left):
            return False
        if answered and error.stage == _TRIED_ELSEWHERE:
            return False
        self._left -= 1
        self._answered_left -= answered
        self._made += 1
        return True

    def backoff_s(self, random: Random) -> float:
        """How long to wait before the try that was granted last."""
        longest = min(LONGEST_BACKOFF_S, BACKOFF_S * 2.0 ** (self._made - 1))
        return longest * random.uniform(0.5, 1.0)
