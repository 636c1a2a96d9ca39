# SPDX-License-Identifier: Apache-2.0
"""The scheduler's books: which embeddings are on their way or here, and which requests need them. Pure."""

import itertools
from dataclasses import dataclass, field
from enum import Enum

from vllm_epd.connectors.metadata import Load


class LandingState(Enum):
    """How far an embedding has come on its way to the workers."""

    FETCHING = "fetching"
    READY = "ready"
    FAILED = "failed"


@dataclass(slots=True)
class Landing:
    """One embedding that the agents pin. Its number is never used again, so a late drop cannot hit a newer one.

    Attributes:
        loads: how often the workers have been told to load it.
    """

    number: int
    key: str
    state: LandingState = LandingState.FETCHING
    reason: str = ""
    users: set[str] = field(default_factory=set)
    loads: int = 0


@dataclass(frozen=True, slots=True)
class Drop:
    """The agents need keep landing `number` no longer than until it has been loaded `loads` times."""

    number: int
    loads: int


class LandingBook:
    """Who needs what, and what may be dropped.

    What the scheduler was told is here stays here as long as a request uses it, and until the workers have carried out
    every load that they were told of. What nobody uses is dropped; the agents keep it as a cache entry while they
    have room.
    """

    def __init__(self) -> None:
        self._landings: dict[str, Landing] = {}
        self._numbers = itertools.count()
        self._loads: list[Load] = []
        self._drops: list[Drop] = []

    def new_number(self) -> int:
        """A number for a landing that the agents may already hold; `adopt` or `reject` it."""
        return next(self._numbers)

    def get(self, key: str) -> Landing | None:
        """The present landing of `key`, if there is one."""
        return self._landings.get(key)

    def is_ready(self, key: str) -> bool:
        """Whether `key` is with the workers."""
        landing = self._landings.get(key)
        return landing is not None and landing.state is LandingState.READY

    def use(self, key: str, user: str) -> int | None:
        """Note that request `user` needs `key`; the number of the landing if it has to be fetched first."""
        landing = self._landings.get(key)
        fresh = landing is None or (landing.state is LandingState.FAILED and user not in landing.users)
        if fresh:
            landing = self._landings[key] = Landing(self.new_number(), key)
        assert landing is not None
        landing.users.add(user)
        return landing.number if fresh else None

    def adopt(self, number: int, key: str, user: str) -> None:
        """The agents pin `key`, which they held already, as `number` for request `user`."""
        known = self._landings.get(key)
        if known is not None and known.state is not LandingState.FAILED:
            self.reject(number)
            known.users.add(user)
            return
        users = set() if known is None else known.users
        self._landings[key] = Landing(number, key, LandingState.READY, users=users | {user})

    def reject(self, number: int) -> None:
        """Nobody needs `number` after all."""
        self._drops.append(Drop(number, 0))

    def landed(self, number: int) -> None:
        """Landing `number` is with the workers."""
        landing = self._find(number)
        if landing is not None:
            landing.state = LandingState.READY

    def failed(self, number: int, reason: str) -> None:
        """Landing `number` cannot be had."""
        landing = self._find(number)
        if landing is not None:
            landing.state, landing.reason = LandingState.FAILED, reason

    def load(self, key: str) -> None:
        """Have the workers load `key` with the next step."""
        landing = self._landings[key]
        landing.loads += 1
        self._loads.append(Load(key, landing.number))

    def release(self, key: str, user: str) -> None:
        """Request `user` needs `key` no more."""
        landing = self._landings.get(key)
        if landing is None or user not in landing.users:
            return
        landing.users.discard(user)
        if not landing.users:
            del self._landings[key]
            if landing.state is not LandingState.FAILED:
                self._drops.append(Drop(landing.number, landing.loads))

    def leave(self, user: str) -> None:
        """Request `user` has ended."""
        for key in list(self._landings):
            self.release(key, user)

    def take_loads(self) -> tuple[Load, ...]:
        """Loads since the last call; for a step that reaches the workers."""
        loads, self._loads = tuple(self._loads), []
        return loads

    def take_drops(self) -> tuple[Drop, ...]:
        """Drops since the last call."""
        drops, self._drops = tuple(self._drops), []
        return drops

    def _find(self, number: int) -> Landing | None:
        return next((entry for entry in self._landings.values() if entry.number == number), None)
