# SPDX-License-Identifier: Apache-2.0
"""The scheduler's books: which embeddings are on their way or here, and which requests need them. Pure."""

import itertools
from dataclasses import dataclass, field
from enum import Enum

from vllm_epd.connectors.metadata import Load, Merge
from vllm_epd.transfer.keys import part_key


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

    An item that was encoded in parts has a landing for each; it is here once all of them are. Requests may have it in
    different numbers of parts.
    """

    def __init__(self) -> None:
        self._landings: dict[str, Landing] = {}
        self._numbers = itertools.count()
        self._splits: dict[str, dict[int, set[str]]] = {}
        self._loads: list[Load] = []
        self._merges: list[Merge] = []
        self._drops: list[Drop] = []

    def new_number(self) -> int:
        """A number for a landing that the agents may already hold; `adopt` or `reject` it."""
        return next(self._numbers)

    def get(self, key: str) -> Landing | None:
        """The present landing of `key`, if there is one."""
        return self._landings.get(key)

    def is_ready(self, key: str) -> bool:
        """Whether `key` is with the workers, as one or in parts."""
        return bool(self._ready(key))

    def has_landed(self, key: str) -> bool:
        """Whether there is a landing of `key` itself, with the workers."""
        landing = self._landings.get(key)
        return landing is not None and landing.state is LandingState.READY

    def split(self, key: str, count: int, user: str) -> None:
        """Note that request `user` needs `key` as `count` parts, each of which it has to `use`."""
        self._splits.setdefault(key, {}).setdefault(count, set()).add(user)

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
        landings = self._ready(key)
        assert landings, f"{key} is not here"
        for landing in landings:
            landing.loads += 1
        loads = tuple(Load(landing.key, landing.number) for landing in landings)
        if [load.key for load in loads] == [key]:
            self._loads += loads
        else:
            self._merges.append(Merge(key, loads))

    def release(self, key: str, user: str) -> None:
        """Request `user` needs `key` no more, nor any part of it."""
        for count in [count for count, users in self._splits.get(key, {}).items() if user in users]:
            self._leave_split(key, count, user)
            for part in _part_keys(key, count):
                self._release(part, user)
        self._release(key, user)

    def leave(self, user: str) -> None:
        """Request `user` has ended."""
        for key in [*self._landings, *self._splits]:
            self.release(key, user)

    def take_loads(self) -> tuple[Load, ...]:
        """Loads since the last call; for a step that reaches the workers."""
        loads, self._loads = tuple(self._loads), []
        return loads

    def take_merges(self) -> tuple[Merge, ...]:
        """The same for items in parts."""
        merges, self._merges = tuple(self._merges), []
        return merges

    def take_drops(self) -> tuple[Drop, ...]:
        """Drops since the last call."""
        drops, self._drops = tuple(self._drops), []
        return drops

    def _ready(self, key: str) -> tuple[Landing, ...]:
        """The landings that make up `key`, all of them with the workers; none if there are no such."""
        for keys in ((key,), *(_part_keys(key, count) for count in self._splits.get(key, ()))):
            if all(map(self.has_landed, keys)):
                return tuple(self._landings[each] for each in keys)
        return ()

    def _release(self, key: str, user: str) -> None:
        landing = self._landings.get(key)
        if landing is None or user not in landing.users:
            return
        landing.users.discard(user)
        if not landing.users:
            del self._landings[key]
            if landing.state is not LandingState.FAILED:
                self._drops.append(Drop(landing.number, landing.loads))

    def _leave_split(self, key: str, count: int, user: str) -> None:
        splits = self._splits[key]
        splits[count].discard(user)
        if not splits[count]:
            del splits[count]
        if not splits:
            del self._splits[key]

    def _find(self, number: int) -> Landing | None:
        return next((entry for entry in self._landings.values() if entry.number == number), None)


def _part_keys(key: str, count: int) -> tuple[str, ...]:
    return tuple(part_key(key, index, count) for index in range(count))
