# SPDX-License-Identifier: Apache-2.0
"""The trace in a simulation of discrete events: the router's own deciders, over instances that are numbers.

Estimates, orders, policies, rooms in pools, seats and the directory of prefixes are the router's own code. The
instances work at one thing after the other, at a fixed rate. Nothing here depends on the machine or on its clock.
"""

import heapq
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial

from tests.bench.policies.fleet import (
    CACHE_BLOCKS,
    ENCODE_RATE,
    ENCODERS,
    POOL_ITEMS,
    PREFILL_RATE,
    PREFILL_SEQUENCES,
    PREFILLS,
    Outcome,
    Setting,
)
from tests.bench.policies.trace import Arrival
from tests.fakes.instance import FINGERPRINT
from vllm_epd.router.choosing import Chooser
from vllm_epd.router.costs import Means
from vllm_epd.router.demand import Demand, estimate
from vllm_epd.router.instances import Instance
from vllm_epd.router.line import Line
from vllm_epd.router.ordering import Ticket, order_named
from vllm_epd.router.placement import Need, Place, place
from vllm_epd.router.policies import policy_named
from vllm_epd.router.prefixes import BLOCK_TOKENS, Holders, holder
from vllm_epd.router.rates import Pace
from vllm_epd.router.requests import Api, parse_request
from vllm_epd.router.seats import Seat
from vllm_epd.types import InstanceInfo, Role, RoleSet

ITEM = 1
STAGES = (Role.ENCODE, Role.PREFILL)


@dataclass(eq=False)
class Machine:
    """An instance that does one thing after the other, and what its prefix cache holds."""

    instance: Instance
    rate: float
    free_at: float = 0.0
    cache: Holders = field(default_factory=lambda: Holders(CACHE_BLOCKS))

    def work(self, now: float, tokens: float) -> float:
        """When so much work that comes now is done."""
        self.free_at = max(now, self.free_at) + tokens / self.rate
        return self.free_at


@dataclass(eq=False)
class Request:
    """One request on its way."""

    number: int
    arrived: float
    due: float
    demand: Demand
    places: Sequence[Place] = ()
    missing: int = 0
    queued: int = 0


class Simulation:
    """A trace under one setting."""

    def __init__(self, trace: Sequence[Arrival], setting: Setting) -> None:
        self._trace = trace
        self._setting = setting
        self._now = 0.0
        self._number = 0
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._chooser = Chooser(dict.fromkeys(Role, policy_named(setting.policy)))
        self._encoders = _machines("E", ENCODERS, ENCODE_RATE, {"pool_bytes": POOL_ITEMS * ITEM})
        self._prefills = _machines("P", PREFILLS, PREFILL_RATE, {"max_num_seqs": PREFILL_SEQUENCES})
        self._seen = Holders(2**16)
        self._paces = {role: Pace() for role in Role}
        self._waiting: dict[Role, Line[Request]] = {role: Line(order_named(setting.order)) for role in STAGES}
        self._ttfts: dict[int, float] = {}

    def run(self) -> Outcome:
        means = Means()
        for number, each in enumerate(self._trace):
            demand = estimate(parse_request(Api.CHAT, each.body), means, named=True)
            request = Request(number, each.at, each.at + each.slo_s, demand)
            stage = Role.ENCODE if demand.media else Role.PREFILL
            self._at(each.at, partial(self._enqueue, stage, request))
        while self._events:
            self._now, _, event = heapq.heappop(self._events)
            event()
        return Outcome(self._setting, tuple(self._ttfts[number] for number in range(len(self._trace))))

    def _at(self, when: float, event: Callable[[], None]) -> None:
        self._number += 1
        heapq.heappush(self._events, (when, self._number, event))

    def _enqueue(self, stage: Role, request: Request) -> None:
        work = sum(request.demand.media) if stage is Role.ENCODE else request.demand.prompt(0)
        ticket = Ticket(request.arrived, work, request.due, self._paces[stage].seconds(work))
        request.queued = self._waiting[stage].add(ticket, request, self._now)
        self._admit()

    def _admit(self) -> None:
        """Let in who is in front, as long as there is room."""
        for stage, start in zip(STAGES, (self._encode, self._prefill), strict=True):
            queue = self._waiting[stage]
            while queue and start(front := queue.front(self._now)):
                queue.remove(front.queued)

    def _encode(self, request: Request) -> bool:
        needs = [Need(slot=object(), cost=cost) for cost in request.demand.media]
        instances = [each.instance for each in self._encoders]
        placed = place(needs, instances, lambda found, _: self._chooser.pick(Role.ENCODE, found), lambda _: ITEM)
        if placed is None:
            return False
        request.places, request.missing = placed, len(placed)
        for need, found in zip(needs, placed, strict=True):
            found.instance.pool.take(found.slot, found.nbytes)
            found.instance.begin(need.cost)
            done = _of(self._encoders, found.instance).work(self._now, need.cost)
            self._at(done, partial(self._encoded, request, found.instance, need.cost, self._now))
        return True

    def _encoded(self, request: Request, instance: Instance, cost: float, began: float) -> None:
        instance.end(cost)
        request.missing -= 1
        if request.missing == 0:
            self._paces[Role.ENCODE].note(sum(request.demand.media), self._now - began)
            self._enqueue(Role.PREFILL, request)

    def _prefill(self, request: Request) -> bool:
        ask, names = request.demand.prefill(0), request.demand.names(0)
        roomy = [each.instance for each in self._prefills if each.instance.seated.fits(ask, each.instance.info)]
        if not roomy:
            return False
        instance = self._chooser.pick(
            Role.PREFILL, roomy, lambda each: float(BLOCK_TOKENS * self._seen.blocks(names, holder(each.info)))
        )
        self._seen.note(names, holder(instance.info))
        seat, machine = Seat(instance, ask, lambda: None), _of(self._prefills, instance)
        cached = BLOCK_TOKENS * machine.cache.blocks(names, holder(instance.info))
        machine.cache.note(names, holder(instance.info))
        done = machine.work(self._now, max(1.0, ask.tokens - cached))
        self._at(done, partial(self._prefilled, request, seat, self._now))
        return True

    def _prefilled(self, request: Request, seat: Seat, began: float) -> None:
        seat.end()
        self._paces[Role.PREFILL].note(seat.ask.work, self._now - began)
        for each in request.places:
            each.instance.pool.drop(each.slot)
        self._ttfts[request.number] = self._now - request.arrived
        self._admit()


def _machines(letter: str, count: int, rate: float, limits: dict[str, int]) -> list[Machine]:
    roles = RoleSet.from_letters(letter)
    infos = (InstanceInfo(f"{letter}{n}", "1", "", roles, ("tiny",), FINGERPRINT, limits) for n in range(count))
    return [Machine(Instance(info, 0.0), rate) for info in infos]


def _of(machines: Sequence[Machine], instance: Instance) -> Machine:
    return next(each for each in machines if each.instance is instance)
