# SPDX-License-Identifier: Apache-2.0
import pytest

from vllm_epd.planner.fleet import Fleet
from vllm_epd.planner.profile.store import load_profile
from vllm_epd.planner.search.families import counts, families, name, prefill_decode, replicated, serves
from vllm_epd.planner.simulate.run import simulate
from vllm_epd.planner.workload.requests import Item, Kind, Request
from vllm_epd.topology import Group, Topology
from vllm_epd.types import Role, RoleSet

PROFILE = load_profile("qwen2.5-vl-7b@h100")
MEDIA, TEXT = families(media=True), families(media=False)
IMAGE = Item(Kind.IMAGE, 640, 480)
# Runs of both kinds, so that each instance has some of each.
REQUESTS = [Request(number, 0.0, 50, 20, (IMAGE,) if number // 4 % 2 else ()) for number in range(100)]


@pytest.mark.parametrize("family", MEDIA, ids=map(name, MEDIA))
def test_every_role_of_a_family_is_used(family):
    policies = dict.fromkeys(Role, "least_outstanding")
    outcome = simulate(Fleet(Topology(tuple(Group(kind, 1) for kind in family)), policies=policies), PROFILE, REQUESTS)
    assert len(outcome.served) == len(REQUESTS)
    for kind, use in zip(family, outcome.uses, strict=True):
        assert {role.value for role in kind.roles} <= use.by_stage.keys()


@pytest.mark.parametrize(
    ("letters", "media", "works"),
    [
        ("E P D", True, True),
        ("EPD", True, True),
        ("EP D", True, True),
        ("P ED", True, True),
        ("P D", True, False),
        ("P D", False, True),
        ("E PD D", True, False),
        ("P PD", False, False),
        ("E EPD", True, False),
        ("EP ED", True, False),
        ("E P ED", True, False),
    ],
)
def test_families_are_those_in_which_all_find_their_way(letters, media, works):
    family = tuple(RoleSet.from_letters(each) for each in letters.split())
    assert serves(family, media) is works


def test_text_needs_no_encoder():
    assert {name(family) for family in TEXT} == {"PD", "P+D", "P+PD+D"}


def test_baselines_are_among_the_families():
    assert {replicated(media=True), prefill_decode(media=True)} <= set(MEDIA)
    assert {replicated(media=False), prefill_decode(media=False)} <= set(TEXT)


def test_counts_are_all_ways_to_share_out():
    assert sorted(counts(4, 2)) == [(1, 3), (2, 2), (3, 1)]
    assert list(counts(3, 1)) == [(3,)]
    assert len(list(counts(8, 3))) == 21
    assert all(sum(each) == 8 and min(each) >= 1 for each in counts(8, 3))
