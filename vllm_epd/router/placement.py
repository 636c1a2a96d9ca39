# SPDX-License-Identifier: Apache-2.0
"""Whether the pools of encode instances have room for a request, and where. Pure: nothing stays changed."""

from collections.abc import Callable, Sequence

from msgspec import Struct

from vllm_epd.router.instances import Instance
from vllm_epd.router.pools import Slot
from vllm_epd.router.prefixes import Name

#: Bytes of an embedding that the instance is to make.
Estimate = Callable[[Instance], int]


class Place(Struct, frozen=True, eq=False):
    """A slot of one pool, and what it takes there."""

    instance: Instance
    slot: Slot
    nbytes: int


class Need(Struct, frozen=True, eq=False):
    """What one media part needs of a pool.

    Attributes:
        slot: where its embedding is to be made.
        there: where it is or is being made already.
        cost: what making it is estimated at, in tokens.
        names: by what instances that have had the part before are known.
    """

    slot: Slot
    there: Place | None = None
    cost: float = 0.0
    names: Sequence[Name] = ()


#: Chooses one of at least one instance.
Choose = Callable[[Sequence[Instance], Need], Instance]


def place(
    needs: Sequence[Need], encoders: Sequence[Instance], choose: Choose, estimate: Estimate
) -> list[Place] | None:
    """A place for each need, all at once; None if there is no room for one of them.

    What has no room any more where it is will be made elsewhere. What is to be made is shared out by its cost, the
    most expensive first, so that the instances end at nearly the same time. Where nothing is in use, a request has room
    whatever its size: it will never find more.
    """
    empty = not any(each.pool.used for each in encoders)
    nbytes = {each: estimate(each) for each in encoders}
    placed: dict[Need, Place] = {}
    try:
        for need in needs:
            if (there := need.there) and has_room(there.instance, there.slot, there.nbytes):
                there.instance.pool.take(there.slot, there.nbytes)
                placed[need] = there
        for need in sorted([each for each in needs if each not in placed], key=lambda each: -each.cost):
            roomy = [each for each in encoders if has_room(each, need.slot, nbytes[each])]
            if not roomy and not empty:
                return None
            instance = choose(roomy or encoders, need)
            found = placed[need] = Place(instance, need.slot, nbytes[instance])
            instance.pool.take(found.slot, found.nbytes)
            instance.begin(need.cost)
        return [placed[need] for need in needs]
    finally:
        for need, found in placed.items():
            found.instance.pool.drop(found.slot)
            if found is not need.there:
                found.instance.end(need.cost)


def has_room(instance: Instance, slot: Slot, nbytes: int) -> bool:
    """Whether the slot fits into the pool; an instance that tells no size of its pool has room for all."""
    capacity = instance.pool_bytes
    missing = instance.pool.missing(slot, nbytes)
    return capacity is None or not missing or instance.pool.used + missing <= capacity
