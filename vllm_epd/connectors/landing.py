# SPDX-License-Identifier: Apache-2.0
"""The consumer's books: which embeddings are on their way or here, and which requests need them. Pure."""

import itertools
from collections import OrderedDict
from dataclasses import dataclass, field
from enum import Enum


class LandingState(Enum):
    """How far an embedding has come on its way to the workers."""

    FETCHING = "fetching"
    READY = "ready"
    FAILED = "failed"


@dataclass(slots=True)
class Landing:
    """One fetch of one embedding. Its number is never used again, so a late drop cannot hit a newer fetch."""

    number: int
    key: str
    state: LandingState = LandingState.FETCHING
    nbytes: int = 0
    reason: str = ""
    users: set[str] = field(default_factory=set)

    @property
    def idle(self) -> bool:
        """Here, and needed by no request at the moment."""
        return self.state is LandingState.READY and not self.users


class LandingBook:
    """Who needs what, and what may be dropped.

    An embedding that a request uses is never dropped: what the scheduler was told is here stays here until the
    request ends. One that nobody uses stays as a cache entry within `idle_bytes`, least recently used out first.
    """

    def __init__(self, idle_bytes: int) -> None:
        """Keep at most `idle_bytes` of embeddings that no request uses."""
        self._max_idle_bytes = idle_bytes
        self._landings: OrderedDict[str, Landing] = OrderedDict()
        self._numbers = itertools.count()
        self._drops: list[int] = []

    def __getitem__(self, key: str) -> Landing:
        return self._landings[key]

    def get(self, key: str) -> Landing | None:
        """The present landing of `key`, if there is one."""
        return self._landings.get(key)

    def use(self, key: str, user: str) -> int | None:
        """Note that request `user` needs `key`; the number of the landing if it has to be fetched first."""
        landing = self._landings.get(key)
        fresh = landing is None or (landing.state is LandingState.FAILED and user not in landing.users)
        if fresh:
            landing = self._landings[key] = Landing(next(self._numbers), key)
        assert landing is not None
        landing.users.add(user)
        self._landings.move_to_end(key)
        return landing.number if fresh else None

    def landed(self, number: int, nbytes: int) -> None:
        """Landing `number` is with the workers."""
        landing = self._find(number)
        if landing is None:
            self._drops.append(number)
            return
        landing.state, landing.nbytes = LandingState.READY, nbytes
        self._trim()

    def failed(self, number: int, reason: str) -> None:
        """Landing `number` cannot be had."""
        landing = self._find(number)
        if landing is not None:
            landing.state, landing.reason = LandingState.FAILED, reason
            self._forget_failed()

    def leave(self, user: str) -> None:
        """Request `user` has ended."""
        for landing in self._landings.values():
            landing.users.discard(user)
        self._forget_failed()
        self._trim()

    def take_drops(self) -> tuple[int, ...]:
        """Landings that the workers may drop now; each is told once."""
        drops, self._drops = tuple(self._drops), []
        return drops

    @property
    def idle_bytes(self) -> int:
        """Bytes of embeddings that are here and that no request needs."""
        return sum(landing.nbytes for landing in self._landings.values() if landing.idle)

    def _find(self, number: int) -> Landing | None:
        return next((entry for entry in self._landings.values() if entry.number == number), None)

    def _forget_failed(self) -> None:
        for landing in list(self._landings.values()):
            if landing.state is LandingState.FAILED and not landing.users:
                del self._landings[landing.key]

    def _trim(self) -> None:
        excess = self.idle_bytes - self._max_idle_bytes
        for landing in [landing for landing in self._landings.values() if landing.idle]:
            if excess <= 0:
                return
            excess -= landing.nbytes
            del self._landings[landing.key]
            self._drops.append(landing.number)
