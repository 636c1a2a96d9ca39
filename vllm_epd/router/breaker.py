# SPDX-License-Identifier: Apache-2.0
"""Whether something that failed lately is worth another try: a circuit breaker. Pure; the clock is given."""

from collections.abc import Callable, Hashable

#: So many failures in a row open a breaker.
FAILURES = 3
#: Seconds for which a breaker stays open at first; they double with every probe that fails.
COOLDOWN_S = 1.0
LONGEST_S = 30.0


class Breaker:
    """Opens after some failures in a row; after a while it lets one try through, which closes it or opens it again."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._failures = 0
        self._closed_from = 0.0
        self._cooldown_s = COOLDOWN_S

    @property
    def allows(self) -> bool:
        """Whether a try is let through now; who makes one says so by `tried`."""
        return self._failures < FAILURES or self._clock() >= self._closed_from

    def tried(self) -> None:
        """A try is being made: where it is a probe, no other one is let through before it could have ended."""
        if self._failures >= FAILURES:
            self._closed_from = self._clock() + self._cooldown_s

    def failed(self) -> None:
        """A try has failed."""
        self._failures += 1
        if self._failures < FAILURES:
            return
        if self._failures > FAILURES:
            self._cooldown_s = min(2 * self._cooldown_s, LONGEST_S)
        self._closed_from = self._clock() + self._cooldown_s

    def succeeded(self) -> None:
        """A try has succeeded."""
        self._failures, self._cooldown_s = 0, COOLDOWN_S


class PairBreakers:
    """A breaker for each pair of instances that have failed together: each may be well with others.

    A producer with a stale registration of its consumer's memory fails every hand-over to that one alone.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._breakers: dict[tuple[Hashable, Hashable], Breaker] = {}

    def allows(self, first: Hashable, second: Hashable) -> bool:
        """Whether the two may be given work together."""
        breaker = self._breakers.get((first, second))
        return breaker is None or breaker.allows

    @property
    def parted(self) -> int:
        """How many pairs may not be given work together."""
        return sum(not breaker.allows for breaker in self._breakers.values())

    def failed(self, first: Hashable, second: Hashable) -> None:
        """What the two were to do together has failed."""
        self._breakers.setdefault((first, second), Breaker(self._clock)).failed()

    def succeeded(self, first: Hashable, second: Hashable) -> None:
        """What the two were to do together was done."""
        self._breakers.pop((first, second), None)

    def keep(self, present: Callable[[Hashable], bool]) -> None:
        """Forget pairs of which one is gone."""
        self._breakers = {pair: breaker for pair, breaker in self._breakers.items() if all(map(present, pair))}
