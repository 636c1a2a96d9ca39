# SPDX-License-Identifier: Apache-2.0
"""Instances that change their roles while a fleet serves. Pure.

A change takes three steps (paper, 3.2.4): the instance stops taking anything new and finishes what it has; for a
while it does nothing, while weights and caches are exchanged; then it takes work in its new role. How long the first
takes follows from the simulation: a sequence is never moved, so that a decoder stops only when its last answer is
whole. One change is under way at a time, and no role loses its last instance.

Who changes is decided at fixed intervals by a pure function of how full the stages were at the last looks, or planned.
"""

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from math import inf

from vllm_epd.errors import ConfigError
from vllm_epd.planner.fleet import Fleet, Limits
from vllm_epd.planner.profile.memory import room
from vllm_epd.planner.profile.profile import Profile
from vllm_epd.planner.simulate.engine import Trace
from vllm_epd.planner.simulate.fleet_run import FleetRun
from vllm_epd.planner.simulate.instance import Instance
from vllm_epd.types import Role, RoleSet

KEPT = 20
"""Looks at the stages that a decider is shown, at most."""
SWITCH = "switch"


@dataclass(frozen=True, slots=True)
class StageLoad:
    """How much a stage has to do.

    Attributes:
        waiting: requests that wait for a place at one of its instances.
        active: parts, prompts or sequences that its instances have been given.
        instances: that do nothing else, and take work.
        at_once: how many parts, prompts or sequences one of them works on at once.
    """

    waiting: int
    active: int
    instances: int
    at_once: int

    @property
    def fill(self) -> float:
        """How many times as much as its instances work on at once there is to do; endless if there are none."""
        asked = self.waiting + self.active
        if not self.instances:
            return inf if asked else 0.0
        return asked / (self.instances * self.at_once)


@dataclass(frozen=True, slots=True)
class Change:
    """An instance of one set of roles takes up another one."""

    source: RoleSet
    target: RoleSet


#: `(looks at the stages, the latest last) -> change`; looks from before the last change are not shown.
Decide = Callable[[Sequence[Mapping[Role, StageLoad]]], Change | None]


@dataclass(frozen=True, slots=True)
class Switches:
    """How roles change.

    Attributes:
        decide: asked at each look; None if only what is planned changes.
        interval_s: between looks.
        planned: changes, each with its time.
        seconds: that an instance does nothing when it gets other weights, as where encode is involved.
        light_s: the same between prefill and decode, which have the same weights.
    """

    decide: Decide | None = None
    interval_s: float = 1.0
    planned: Sequence[tuple[float, Change]] = ()
    seconds: float = 0.7
    light_s: float = 0.1

    def __post_init__(self) -> None:
        if not self.interval_s > 0 or self.seconds < 0 or self.light_s < 0:
            given = f"{self.interval_s} s between looks, {self.seconds} and {self.light_s} s for a switch"
            raise ConfigError(f"looks must be more than 0 s apart and a switch takes 0 s or more, got {given}")

    def takes_s(self, change: Change) -> float:
        """How long an instance does nothing."""
        return self.seconds if change.source.encode != change.target.encode else self.light_s


@dataclass(frozen=True, slots=True)
class Threshold:
    """Moves an instance from the emptiest stage to the fullest one, if they have been far apart for some looks.

    The two thresholds and the number of looks are its hysteresis: an instance that has moved changes both stages, and
    nothing more happens before all looks that count are from after that.

    Attributes:
        low: a stage that gives an instance away is at most so full, also with one instance less.
        high: a stage that gets one is at least so full.
        looks: that must all agree.
    """

    low: float = 0.5
    high: float = 1.0
    looks: int = 3

    def __post_init__(self) -> None:
        if not 0 <= self.low < self.high or self.looks < 1:
            given = f"low {self.low}, high {self.high}, {self.looks} looks"
            raise ConfigError(f"thresholds need 0 <= low < high and at least one look, got {given}")

    def __call__(self, looks: Sequence[Mapping[Role, StageLoad]]) -> Change | None:
        """Decide."""
        last = looks[-self.looks :]
        if len(last) < self.looks:
            return None
        now = last[-1]
        full = max(now, key=lambda role: now[role].fill)
        givers = [role for role in now if role is not full and all(self._may_give(each[role]) for each in last)]
        if not givers or any(each[full].fill < self.high for each in last):
            return None
        return Change(RoleSet.of([min(givers, key=lambda role: now[role].fill)]), RoleSet.of([full]))

    def _may_give(self, load: StageLoad) -> bool:
        count = load.instances
        return count > 1 and load.fill * count / (count - 1) <= self.low


class Switching:
    """Carries changes out in a run; those that are planned for a time when another is under way wait for its end."""

    def __init__(
        self, run: FleetRun, switches: Switches, fleet: Fleet, profile: Profile, requests: int, trace: Trace | None
    ) -> None:
        self._run = run
        self._switches = switches
        self._fleet = fleet
        self._profile = profile
        self._requests = requests
        self._trace = trace
        self._looks: list[Mapping[Role, StageLoad]] = []
        self._asked: deque[Change] = deque()
        self._change: Change | None = None
        self._leaving: Instance | None = None
        run.noticed = self._notice
        for at, change in switches.planned:
            run.events.at(at, partial(self._ask, change))
        if switches.decide is not None:
            run.events.at(switches.interval_s, self._look)

    def _look(self) -> None:
        run, decide = self._run, self._switches.decide
        if len(run.ended) + len(run.refused) == self._requests:
            return
        if self._change is None:
            self._looks = [*self._looks[1 - KEPT :], loads_of(run, self._fleet.limits)]
            if decide is not None and (change := decide(tuple(self._looks))) is not None:
                self._ask(change)
        run.events.after(self._switches.interval_s, self._look)

    def _ask(self, change: Change) -> None:
        self._asked.append(change)
        self._begin()

    def _begin(self) -> None:
        """Have the instance that has least to do stop taking work; nobody, if it is the last one of its roles."""
        while self._change is None and self._asked:
            change = self._asked.popleft()
            able = [each for each in self._run.instances if each.takes and each.roles == change.source]
            if len(able) < 2:
                continue
            self._change = change
            self._leaving = min(able, key=lambda each: (each.outstanding, each.work))
            self._leaving.takes = False
            self._run.who_takes_what()

    def _notice(self) -> None:
        """Something is over; whether the engine goes on is known once all events of this moment are."""
        if self._leaving is not None:
            self._run.events.after(0.0, self._look_for_idle)

    def _look_for_idle(self) -> None:
        leaving, change = self._leaving, self._change
        if leaving is None or change is None or not leaving.idle:
            return
        self._leaving = None
        seconds = self._switches.takes_s(change)
        if self._trace is not None:
            now = self._run.events.now
            self._trace(leaving.name, SWITCH, now, now + seconds)
        self._run.events.after(seconds, partial(self._become, leaving, change.target))

    def _become(self, instance: Instance, roles: RoleSet) -> None:
        instance.become(roles, room(self._profile, roles, self._fleet))
        self._looks.clear()
        self._change = None
        self._run.who_takes_what()
        self._begin()


def loads_of(run: FleetRun, limits: Limits) -> dict[Role, StageLoad]:
    """How much each stage has to do, of those instances that do nothing else."""
    at_once = {
        Role.ENCODE: limits.encode_items,
        Role.PREFILL: limits.prefill_sequences,
        Role.DECODE: limits.decode_sequences,
    }
    found = {}
    for role in Role:
        alone = [each for each in run.instances if each.takes and each.roles == RoleSet.of([role])]
        active = sum(each.outstanding if role is Role.ENCODE else each.sequences for each in alone)
        found[role] = StageLoad(run.waiting(role), active, len(alone), at_once[role])
    return found
