# SPDX-License-Identifier: Apache-2.0
"""What is sought: fleets of a number of GPUs, each of which has the memory that it needs. Pure.

A fleet is the end of a walk of choices, each among options that are feasible after those before it. So what cannot be
had cannot be drawn, and whoever answers the questions of the walk decides what the walk is for: a sampler, a list of
all fleets, or the answers that lead to a known one.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Protocol, TypeVar

from vllm_epd.errors import ConfigError
from vllm_epd.planner.fleet import Fleet, Limits
from vllm_epd.planner.search.families import Family, counts, name
from vllm_epd.router.ordering import ORDERS
from vllm_epd.router.policies import POLICIES
from vllm_epd.topology import Group, Topology
from vllm_epd.types import Role, RoleSet

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Choices:
    """What one may choose from, beside the topology; ordered from little to much where there is an order.

    Attributes:
        encode_items: see `Limits`, also for the next three.
        prefill_sequences: for instances that prefill and do not decode. Others have one number for both.
        policies: names of `router.policies`, for each stage that has several instances.
        orders: names of `router.ordering`, for encode and prefill. D is taken together with P, or its queue is short.
        irp_degrees: see `Fleet`, also for the next.
        spreads: the router shares items out whatever one wishes.
    """

    encode_items: tuple[int, ...] = (1, 2, 4, 8, 16, 32)
    prefill_sequences: tuple[int, ...] = (1, 2, 4, 8, 16)
    decode_sequences: tuple[int, ...] = (1, 4, 8, 16, 32, 64, 128, 256)
    batched_tokens: tuple[int, ...] = (1024, 2048, 4096, 8192, 16384)
    policies: tuple[str, ...] = tuple(sorted(POLICIES))
    orders: tuple[str, ...] = tuple(sorted(ORDERS))
    irp_degrees: tuple[int | None, ...] = (None, 1)
    spreads: tuple[bool, ...] = (True,)


class Chooser(Protocol):
    """Who answers the questions of a walk."""

    def among(self, what: str, options: Sequence[T]) -> T:
        """One of several without an order."""
        ...

    def along(self, what: str, options: Sequence[T]) -> T:
        """One of several in an order."""
        ...


Shortage = Callable[[RoleSet, Limits], str | None]
"""What an instance of that kind lacks under those limits, as a sentence; None if nothing."""


@dataclass(frozen=True, slots=True)
class Space:
    """All fleets to choose from.

    Attributes:
        gpus: instances of each fleet.
        limits: the limits that each family of instances has the memory for; families without any are left out.
        choices: the rest.
        base: what all fleets have in common; its topology does not matter.
    """

    gpus: int
    limits: Mapping[Family, tuple[Limits, ...]]
    choices: Choices
    base: Fleet

    def only(self, *families: Family) -> "Space":
        """The part with these families."""
        return replace(self, limits={family: self.limits[family] for family in families if family in self.limits})

    def without(self, *families: Family) -> "Space":
        """The part without them."""
        return self.only(*(family for family in self.limits if family not in families))

    def of(self, gpus: int) -> "Space":
        """The same for another number of GPUs."""
        limits = {family: limits for family, limits in self.limits.items() if len(family) <= gpus}
        return replace(self, gpus=gpus, limits=limits)


def build(gpus: int, families: Sequence[Family], shortage: Shortage, choices: Choices, base: Fleet) -> Space:
    """The space of what is feasible.

    Raises:
        ConfigError: nothing is; says what each kind of instance lacks.
    """
    if gpus < 1:
        raise ConfigError(f"a fleet needs at least 1 GPU, got {gpus}")
    lacks: dict[tuple[RoleSet, Limits], str | None] = {}

    def fits(kind: RoleSet, limits: Limits) -> bool:
        if (kind, limits) not in lacks:
            lacks[kind, limits] = shortage(kind, limits)
        return lacks[kind, limits] is None

    found = {}
    for family in families:
        if len(family) <= gpus:
            grid = _grid(family, choices, base.limits)
            if allowed := tuple(limits for limits in grid if all(fits(kind, limits) for kind in family)):
                found[family] = allowed
    if not found:
        raise ConfigError(_infeasible(gpus, families, lacks))
    return Space(gpus, found, choices, base)


def walk(space: Space, chooser: Chooser) -> Fleet:
    """Choose a fleet."""
    names = {name(family): family for family in space.limits}
    family = names[chooser.among("kinds", tuple(names))]
    topology = Topology(tuple(map(Group, family, _counts(space.gpus, family, chooser))))
    limits = _limits(space.limits[family], chooser)
    several = [role for role in Role if _serving(topology, role) > 1]
    queued = [role for role in (Role.ENCODE, Role.PREFILL) if role in topology.roles]
    return replace(
        space.base,
        topology=topology,
        limits=limits,
        policies={role: chooser.among(f"{role} policy", space.choices.policies) for role in several},
        orders={role: chooser.among(f"{role} order", space.choices.orders) for role in queued},
        irp_degree=chooser.among("irp", space.choices.irp_degrees) if Role.ENCODE in several else space.base.irp_degree,
        spread=chooser.among("spread", space.choices.spreads) if Role.ENCODE in several else space.base.spread,
    )


def size(space: Space) -> int:
    """How many topologies there are, whatever the limits."""
    return sum(1 for family in space.limits for _ in counts(space.gpus, len(family)))


def _counts(gpus: int, family: Family, chooser: Chooser) -> list[int]:
    chosen: list[int] = []
    for position, kind in enumerate(family):
        left, others = gpus - sum(chosen), len(family) - position - 1
        options = range(1, left - others + 1) if others else range(left, left + 1)
        chosen.append(chooser.along(f"{kind.letters} instances", options))
    return chosen


def _limits(allowed: Sequence[Limits], chooser: Chooser) -> Limits:
    """One field after the other, among those values that something feasible has."""
    left = list(allowed)
    for what in ("batched_tokens", "encode_items", "prefill_sequences", "decode_sequences"):
        options = sorted({getattr(limits, what) for limits in left})
        value = chooser.along(what, options)
        left = [limits for limits in left if getattr(limits, what) == value]
    (limits,) = left
    return limits


def _grid(family: Family, choices: Choices, base: Limits) -> list[Limits]:
    """All limits that make a difference to the family."""
    encodes = any(kind.encode for kind in family)
    apart = any(kind.prefill and not kind.decode for kind in family)
    return [
        Limits(items, sequences or decoding, decoding, tokens)
        for items, sequences, decoding, tokens in product(
            choices.encode_items if encodes else (base.encode_items,),
            choices.prefill_sequences if apart else (None,),
            choices.decode_sequences,
            choices.batched_tokens,
        )
    ]


def _serving(topology: Topology, role: Role) -> int:
    return sum(group.count for group in topology.groups if role in group.roles)


def _infeasible(gpus: int, families: Sequence[Family], lacks: Mapping[tuple[RoleSet, Limits], str | None]) -> str:
    """What stands in the way: of each kind the shortage that is told for its smallest limits."""
    told = {}
    for (kind, _), why in lacks.items():
        if why is not None and kind not in told:
            told[kind] = why
    if not told:
        fewest = min(len(family) for family in families)
        return f"{gpus} GPUs are too few: there have to be {fewest} instances at least"
    reasons = "; ".join(f"{kind.letters}: {why}" for kind, why in told.items())
    return f"no fleet of {gpus} GPUs has the memory: {reasons}"
