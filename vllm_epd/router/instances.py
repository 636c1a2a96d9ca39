# SPDX-License-Identifier: Apache-2.0
"""Who is there: instances, their epochs and how long ago each was heard of. No I/O; the clock is given."""

import math
import time
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field, replace
from typing import Any, Protocol, TypeVar

from vllm_epd.router.breaker import Breaker
from vllm_epd.router.capacity import Seated
from vllm_epd.router.policies import Load
from vllm_epd.router.pools import Ledger
from vllm_epd.types import InstanceInfo, RoleSet

T = TypeVar("T")

#: An instance that has been silent for so many times the limit is taken for dead.
LOST_TTLS = 4


class Awaited(Protocol):
    """An answer that an instance is to give."""

    def give_up(self, why: str) -> None:
        """Tell who waits for it that it will not come."""


@dataclass(slots=True, eq=False)
class Instance:
    """One start of an instance, compared by identity: a restarted one is another.

    Attributes:
        info: what it said of itself, brought up to date by its heartbeats.
        seen: when it was last heard of.
        outstanding: calls that it has not answered yet.
        work: what these are estimated at, in tokens.
        seated: what requests have of its engine.
        suspended: a connection was refused; it is left alone until its next heartbeat.
        pool: what requests hold of its embedding pool.
        breaker: open where calls to it have failed lately.
        shares: routers that fill that pool, each without knowing of the others; this one counts on its share.
    """

    info: InstanceInfo
    seen: float
    outstanding: int = 0
    work: float = 0.0
    seated: Seated = field(default_factory=Seated)
    suspended: bool = False
    pool: Ledger = field(default_factory=Ledger)
    breaker: Breaker = field(default_factory=lambda: Breaker(time.monotonic))
    shares: int = 1
    _awaited: set[Awaited] = field(default_factory=set, repr=False)

    @property
    def name(self) -> str:
        """What messages call it."""
        return self.info.instance_id

    @property
    def pool_bytes(self) -> int | None:
        """How much of its embedding pool may be filled; None if it does not tell."""
        nbytes = self.info.limits.get("pool_bytes")
        return None if nbytes is None else nbytes // self.shares

    @property
    def load(self) -> Load:
        """What a policy is told of it."""
        return Load(self.outstanding, self.work)

    def begin(self, work: float) -> None:
        """Count one call of so much work, in tokens, until `end`."""
        self.outstanding += 1
        self.work += work

    def end(self, work: float) -> None:
        """Take back one `begin`."""
        self.outstanding -= 1
        # Sums of floats do not end at 0 by themselves, and what is left over would make equals unequal.
        self.work = self.work - work if self.outstanding else 0.0

    def await_answer(self, answer: Awaited) -> None:
        """Have an answer given up if the instance turns out to be gone, until `end_answer`."""
        self._awaited.add(answer)

    def end_answer(self, answer: Awaited) -> None:
        """The answer has come, or nobody waits for it any more."""
        self._awaited.discard(answer)

    def is_over(self) -> None:
        """Tell those that wait for answers that none will come."""
        for each in list(self._awaited):
            each.give_up("the instance is gone")


class InstanceRegistry:
    """The instances that have registered and still report.

    An instance that leaves, is dropped or is replaced by a new epoch takes no new work. Calls in flight keep their
    `Instance`; they end when a new epoch replaces it or it stays silent for long, and otherwise as they will.

    Attributes:
        revision: grows with each change of who is there, what it does, or whether it may be given work.
    """

    def __init__(self, clock: Callable[[], float], ttl_s: float, *, shares: int = 1) -> None:
        self._clock = clock
        self._shares = shares
        self._ttl_s = ttl_s
        self._instances: dict[str, Instance] = {}
        self._silent: list[Instance] = []
        self._watchers: list[Callable[[], None]] = []
        self._derived: dict[Hashable, Any] = {}
        self._due_at = math.inf  # nobody has been silent for too long before that
        self.revision = 0

    def watch(self, changed: Callable[[], None]) -> None:
        """Have `changed` called whenever `revision` has grown."""
        self._watchers.append(changed)

    def sweep(self) -> None:
        """Drop those that have not been heard of for too long."""
        if self._clock() <= self._due_at:
            return
        silent = [key for key, each in self._instances.items() if self.age_s(each) > self._ttl_s]
        self._silent += [self._instances.pop(key) for key in silent]
        if silent:
            self._changed()
        for each in [each for each in self._silent if self.age_s(each) > LOST_TTLS * self._ttl_s]:
            self._silent.remove(each)
            each.is_over()
        due = [each.seen + self._ttl_s for each in self._instances.values()]
        self._due_at = min([*due, *(each.seen + LOST_TTLS * self._ttl_s for each in self._silent)], default=math.inf)

    def register(self, info: InstanceInfo) -> None:
        """Take in an instance; the same epoch again refreshes it, a new epoch replaces the old one."""
        known = self._instances.get(info.instance_id)
        self._due_at = min(self._due_at, self._clock() + self._ttl_s)
        if known is not None and known.info.epoch == info.epoch:
            self._refresh(known, info)
            return
        self._instances[info.instance_id] = self._returned(info) or self._new(info)
        if known is not None:
            known.is_over()
        self._changed()

    def heartbeat(
        self,
        instance_id: str,
        epoch: str,
        roles: RoleSet | None = None,
        models: tuple[str, ...] | None = None,
    ) -> bool:
        """Note that an instance lives, and what it does now; False when this epoch is not registered."""
        known = self._find(instance_id, epoch)
        if known is None:
            return False
        info = known.info
        self._refresh(
            known,
            replace(
                info,
                roles=info.roles if roles is None else roles,
                models=info.models if models is None else models,
            ),
        )
        return True

    def remove(self, instance_id: str, epoch: str) -> bool:
        """Forget an instance; False when this epoch is not registered."""
        if self._find(instance_id, epoch) is None:
            return False
        del self._instances[instance_id]
        self._changed()
        return True

    def suspend(self, instance: Instance) -> None:
        """Give an instance no new work until it reports again."""
        if not instance.suspended:
            instance.suspended = True
            self._changed()

    def listed(self) -> tuple[Instance, ...]:
        """All that live, in order of registration, suspended ones too."""
        self.sweep()
        return tuple(self._instances.values())

    def available(self) -> tuple[Instance, ...]:
        """Those that may be given work."""
        return self.derived("available", lambda: tuple(each for each in self._instances.values() if not each.suspended))

    def derived(self, key: Hashable, derive: Callable[[], T]) -> T:
        """What follows from who is there alone, derived once for each revision."""
        self.sweep()
        found: T | None = self._derived.get(key)
        if found is None:
            found = self._derived[key] = derive()
        return found

    def age_s(self, instance: Instance) -> float:
        """Seconds since the instance was heard of."""
        return self._clock() - instance.seen

    def _new(self, info: InstanceInfo) -> Instance:
        for each in [each for each in self._silent if each.info.instance_id == info.instance_id]:
            self._silent.remove(each)
            each.is_over()
        return Instance(info, self._clock(), breaker=Breaker(self._clock), shares=self._shares)

    def _returned(self, info: InstanceInfo) -> Instance | None:
        """The same start of an instance that has been silent for a while."""
        for each in self._silent:
            if (each.info.instance_id, each.info.epoch) == (info.instance_id, info.epoch):
                self._silent.remove(each)
                each.info, each.seen, each.suspended = info, self._clock(), False
                return each
        return None

    def _find(self, instance_id: str, epoch: str) -> Instance | None:
        self.sweep()
        known = self._instances.get(instance_id)
        return known if known is not None and known.info.epoch == epoch else None

    def _refresh(self, instance: Instance, info: InstanceInfo) -> None:
        instance.seen = self._clock()
        if instance.suspended or instance.info != info:
            instance.info = info
            instance.suspended = False
            self._changed()

    def _changed(self) -> None:
        self.revision += 1
        self._derived.clear()
        for changed in self._watchers:
            changed()
