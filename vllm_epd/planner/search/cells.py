# SPDX-License-Identifier: Apache-2.0
"""Large fleets as many equal cells: one is simulated with its part of the load. Pure.

A fleet of one cell's topology, many times over, does at least as well as the cells apart: it shares its queues.
"""

from vllm_epd.topology import Group, Topology

LARGEST = 24
"""GPUs of a cell; fleets up to that are simulated as they are."""


def cell_of(gpus: int) -> int:
    """GPUs of one cell of a fleet: the most that divide it evenly, if that is more than half of what may be."""
    if gpus <= LARGEST:
        return gpus
    even = [size for size in range(LARGEST // 2, LARGEST + 1) if gpus % size == 0]
    return max(even, default=LARGEST)


def scaled(topology: Topology, gpus: int) -> Topology:
    """The topology of so many GPUs that is nearest to many of this one; no group is lost."""
    exact = [group.count * gpus / topology.size for group in topology.groups]
    whole = [max(1, int(count)) for count in exact]
    by_rest = sorted(range(len(exact)), key=lambda index: whole[index] - exact[index])
    for index in by_rest[: gpus - sum(whole)]:
        whole[index] += 1
    return Topology(tuple(Group(group.roles, count) for group, count in zip(topology.groups, whole, strict=True)))
