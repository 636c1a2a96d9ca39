# SPDX-License-Identifier: Apache-2.0
from itertools import product

import pytest

from vllm_epd.errors import ConfigError
from vllm_epd.planner.fleet import Fleet, Limits
from vllm_epd.planner.search.families import families
from vllm_epd.planner.search.space import Choices, build
from vllm_epd.topology import Group, Topology
from vllm_epd.types import Role, RoleSet

BASE = Fleet(Topology(()))
SMALL = Choices(
    encode_items=(1, 4),
    prefill_sequences=(2, 8),
    decode_sequences=(16, 64),
    batched_tokens=(2048, 8192),
    policies=("least_loaded", "round_robin"),
    orders=("fcfs",),
    irp_degrees=(None, 1),
)


def _lacks(kind, limits):
    """A card on which whole instances have room for little, and the encoder beside decode for nothing."""
    if kind.encode and kind.decode and not kind.prefill:
        return "no room at all"
    if kind.encode and kind.language_model and limits.encode_items > 1:
        return f"{limits.encode_items} items are too many"
    if kind.prefill and kind.decode and limits.decode_sequences * limits.batched_tokens > 16 * 8192:
        return "too much at once"
    return None


def _by_brute_force(gpus):
    """All that is feasible, found by trying all that can be written down."""
    found = set()
    kinds = [RoleSet.from_letters(letters) for letters in ("E", "EP", "P", "EPD", "PD", "ED", "D")]
    limits = [Limits(*each) for each in product((1, 4), (2, 8, 16, 64), (16, 64), (2048, 8192))]
    for counts in product(range(gpus + 1), repeat=len(kinds)):
        groups = tuple(Group(kind, count) for kind, count in zip(kinds, counts, strict=True) if count)
        family = tuple(group.roles for group in groups)
        if sum(counts) != gpus or family not in families(media=True):
            continue
        apart = any(kind.prefill and not kind.decode for kind in family)
        found |= {
            (str(Topology(groups)), each)
            for each in limits
            if not any(_lacks(kind, each) for kind in family)
            and (each.prefill_sequences in (2, 8) if apart else each.prefill_sequences == each.decode_sequences)
        }
    return found


@pytest.mark.parametrize("gpus", [1, 2, 3, 4])
def test_space_is_what_is_feasible_and_nothing_else(gpus, every):
    space = build(gpus, families(media=True), _lacks, SMALL, BASE)
    drawn = list(every(space))
    assert {(str(fleet.topology), fleet.limits) for fleet in drawn} == _by_brute_force(gpus)
    assert len({repr(fleet) for fleet in drawn}) == len(drawn)


def test_only_what_matters_is_chosen(every):
    space = build(3, families(media=True), _lacks, SMALL, BASE)
    for fleet in every(space):
        several = {
            role for role in Role if sum(role in g.roles for g in fleet.topology.groups for _ in range(g.count)) > 1
        }
        assert set(fleet.policies) == several
        assert fleet.irp_degree is None or Role.ENCODE in several


def test_parts_of_a_space(every):
    space = build(3, families(media=True), _lacks, SMALL, BASE)
    whole = (RoleSet.from_letters("EPD"),)
    assert {str(fleet.topology) for fleet in every(space.only(whole))} == {"3EPD"}
    assert whole not in space.without(whole).limits
    assert {len(family) for family in space.of(2).limits} == {1, 2}
    assert {fleet.topology.size for fleet in every(space.of(2))} == {2}


def test_what_cannot_be_had_is_told():
    with pytest.raises(ConfigError, match="no fleet of 4 GPUs has the memory: PD: a card of paper; P: a card of paper"):
        build(4, families(media=False), lambda kind, limits: "a card of paper" if kind.prefill else None, SMALL, BASE)


def test_too_few_gpus():
    apart = [family for family in families(media=True) if len(family) == 3]
    with pytest.raises(ConfigError, match="2 GPUs are too few: there have to be 3 instances at least"):
        build(2, apart, _lacks, SMALL, BASE)
    with pytest.raises(ConfigError, match="needs at least 1 GPU, got 0"):
        build(0, families(media=True), _lacks, SMALL, BASE)
