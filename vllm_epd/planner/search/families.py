# SPDX-License-Identifier: Apache-2.0
"""Which kinds of instances together serve every request. Pure."""

from collections.abc import Iterable, Iterator
from itertools import combinations

from vllm_epd.types import RoleSet

KINDS = ("E", "EP", "P", "EPD", "PD", "ED", "D")
"""In the order of the stages, as one would write a topology."""

MOST_GROUPS = 3
"""More kinds of instances are not sought: each is one more thing to run, and three have room for every stage apart."""

Family = tuple[RoleSet, ...]
"""Different kinds of instances, in the order of `KINDS`."""


def families(media: bool) -> tuple[Family, ...]:
    """All that can serve, the fewest groups first; without media, those in which nobody encodes."""
    kinds = [kind for kind in map(RoleSet.from_letters, KINDS) if media or not kind.encode]
    return tuple(
        family for size in range(1, MOST_GROUPS + 1) for family in combinations(kinds, size) if serves(family, media)
    )


def serves(family: Iterable[RoleSet], media: bool) -> bool:
    """Whether every request finds its way, and every role is of use.

    KV caches go from instances that prefill to those that decode; an instance that does both keeps them. So there are
    some of the first two sorts or of neither. Media goes to the instance that prefills if that encodes. Otherwise it
    goes to those that only encode, and to any that encode besides something else only where there are none.
    """
    kinds = list(family)
    gives = any(kind.prefill and not kind.decode for kind in kinds)
    takes = any(kind.decode and not kind.prefill for kind in kinds)
    keeps = any(kind.prefill and kind.decode for kind in kinds)
    encodes = any(kind.encode for kind in kinds)
    foreign = any(kind.prefill and not kind.encode for kind in kinds)
    only = any(not kind.language_model for kind in kinds)
    beside = any(kind.encode and kind.decode and not kind.prefill for kind in kinds)
    useful = (foreign or not (only or beside)) and not (only and beside)
    return gives == takes and (gives or keeps) and (encodes or not media) and (useful or not media)


def name(family: Family) -> str:
    """Such as `E+P+D`."""
    return "+".join(kind.letters for kind in family)


def replicated(media: bool) -> Family:
    """Plain replicas: each instance does all."""
    return (RoleSet.from_letters("EPD" if media else "PD"),)


def prefill_decode(media: bool) -> Family:
    """Prefill-decode disaggregation: what encodes also prefills."""
    return RoleSet.from_letters("EP" if media else "P"), RoleSet.from_letters("D")


def counts(gpus: int, groups: int) -> Iterator[tuple[int, ...]]:
    """All ways to share out so many GPUs over so many groups, each with at least one."""
    for cuts in combinations(range(1, gpus), groups - 1):
        ends = (0, *cuts, gpus)
        yield tuple(after - before for before, after in zip(ends, ends[1:], strict=False))
