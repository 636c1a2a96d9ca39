# SPDX-License-Identifier: Apache-2.0
"""Where a search begins: what the mean loads suggest. Pure."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from math import log2

from vllm_epd.planner.fleet import Fleet, Limits
from vllm_epd.planner.search.demand import capacity, proportional
from vllm_epd.planner.search.space import Space
from vllm_epd.router.policies import DEFAULTS
from vllm_epd.topology import Topology
from vllm_epd.types import Role

ORDER = "fcfs"
SPLIT = 0.9
"""What is left of a capacity with each further kind of instance: fewer share a queue."""

Seconds = Callable[[Limits], Mapping[Role, float]]
"""What a request takes of each stage under limits."""


def starts(space: Space, seconds: Seconds, like: Limits, most: int) -> list[Fleet]:
    """One fleet of each family, its GPUs in proportion to the stages' work; the most promising first.

    Args:
        space: where they are from.
        seconds: of the stages.
        like: limits that are known to be good; each family has those it allows that are nearest.
        most: fleets.
    """
    found = []
    for family, allowed in space.limits.items():
        limits = min(allowed, key=lambda each: _distance(each, like))
        topology = proportional(family, space.gpus, seconds(limits))
        worth = capacity(seconds(limits), topology) * SPLIT ** len(family)
        found.append((worth, start(space, topology, limits)))
    best = sorted(found, key=lambda pair: -pair[0])
    return [fleet for _, fleet in best[:most]]


def start(space: Space, topology: Topology, limits: Limits) -> Fleet:
    """A fleet with what the router does by itself."""
    choices = space.choices
    return replace(
        space.base,
        topology=topology,
        limits=limits,
        policies={role: name if name in choices.policies else choices.policies[0] for role, name in DEFAULTS.items()},
        orders=dict.fromkeys(Role, ORDER if ORDER in choices.orders else choices.orders[0]),
        irp_degree=choices.irp_degrees[0],
        spread=choices.spreads[0],
    )


def _distance(one: Limits, other: Limits) -> float:
    """In doublings, over all fields."""
    pairs = (
        (one.encode_items, other.encode_items),
        (one.prefill_sequences, other.prefill_sequences),
        (one.decode_sequences, other.decode_sequences),
        (one.batched_tokens, other.batched_tokens),
    )
    return sum(abs(log2(first / second)) for first, second in pairs)
