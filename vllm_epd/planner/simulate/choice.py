# SPDX-License-Identifier: Apache-2.0
"""Which instance, by the router's own policies and orders. Pure."""

from collections import Counter
from collections.abc import Sequence
from functools import partial

from vllm_epd.planner.fleet import Fleet
from vllm_epd.planner.simulate.instance import Instance
from vllm_epd.planner.simulate.jobs import Journey, Part
from vllm_epd.router.choosing import Chooser
from vllm_epd.router.irp import idle_degree
from vllm_epd.router.line import Line
from vllm_epd.router.ordering import order_named
from vllm_epd.router.policies import DEFAULTS, policy_named
from vllm_epd.types import Role

_ORDER = "fcfs"


def chooser(fleet: Fleet) -> Chooser:
    """The policies of a fleet."""
    return Chooser({role: policy_named(fleet.policies.get(role, DEFAULTS[role])) for role in Role})


def line(fleet: Fleet, stage: Role) -> Line[Journey]:
    """The queue of a stage."""
    return Line(order_named(fleet.orders.get(stage, _ORDER)))


def place(
    parts: Sequence[Part], encoders: Sequence[Instance], chooser: Chooser, *, spread: bool
) -> list[Instance] | None:
    """An encoder for each part, the most expensive first; None if the pools have no room for all of them.

    What an encoder holds already is taken from there. With `spread` each part goes where there is least to do, with
    those before it counted; otherwise all go to one encoder.
    """
    taken: Counter[Instance] = Counter()
    found: dict[int, Instance] = {}
    for index in sorted(range(len(parts)), key=lambda index: (-parts[index].patches, index)):
        part = parts[index]
        holding = [each for each in encoders if each.pool.has(part.name)]
        able = holding or (encoders if spread or not found else [next(iter(found.values()))])
        roomy = [each for each in able if each.pool.fits(taken[each] + each.pool.missing(part.name, part.tokens))]
        if not roomy:
            for chosen, instance in found.items():
                instance.end(float(parts[chosen].tokens))
            return None
        instance = chooser.pick(Role.ENCODE, roomy, partial(_holds, part))
        taken[instance] += instance.pool.missing(part.name, part.tokens)
        found[index] = instance
        instance.begin(float(part.tokens))
    return [found[index] for index in range(len(parts))]


def _holds(part: Part, instance: Instance) -> float:
    return float(part.tokens) if instance.pool.has(part.name) else 0.0


def degree(part: Part, idle: int, encoders: int, among: int, asked: int | None) -> int:
    """As how many shards a part is encoded: as asked for, or over its share of the idle encoders if it is large."""
    if asked is not None:
        return min(asked, encoders, part.tiles)
    return min(idle_degree(idle, among, part.tokens), part.tiles)
