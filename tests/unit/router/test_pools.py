# SPDX-License-Identifier: Apache-2.0
"""How full a pool is, and how large the next embedding may be."""

import dataclasses
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.fakes.instance import FINGERPRINT
from vllm_epd.router.pools import Ledger, Sizes, kept, occupied
from vllm_epd.types import InstanceInfo, RoleSet

ENCODER = InstanceInfo("a:1", "e1", "http://a:1", RoleSet.parse("encode"), ("tiny",), FINGERPRINT)
NBYTES = {"a": 3, "b": 5, "c": 11}


def encoder(**limits):
    return dataclasses.replace(ENCODER, limits=limits)


@given(st.lists(st.sampled_from(["a", "b", "c", "-a", "-b", "-c"])))
def test_a_slot_counts_once_from_its_first_holder_to_its_last(steps):
    ledger, held = Ledger(), Counter()
    for step in steps:
        name = step[-1]
        if step == name:
            ledger.take(kept(name), NBYTES[name])
            held[name] += 1
        elif held[name]:
            ledger.drop(kept(name))
            held[name] -= 1
        assert ledger.used == sum(NBYTES[each] for each in held if held[each])
        assert ledger.missing(kept(name), 7) == (0 if held[name] else 7)


@pytest.mark.parametrize(
    ("limits", "seen", "estimate"),
    [
        ({"pool_bytes": 100, "max_item_bytes": 40}, [], 40),
        ({"pool_bytes": 100, "max_item_bytes": 400}, [], 100),
        ({"pool_bytes": 100}, [], 100),
        ({"max_item_bytes": 40}, [], 40),
        ({}, [], 0),
        ({"pool_bytes": 100, "max_item_bytes": 40}, [7, 9, 8], 9),
        ({"pool_bytes": 100, "max_item_bytes": 40}, [7, 900], 100),
        ({"pool_bytes": 100, "max_item_bytes": 40}, [0], 40),
        ({"pool_bytes": 100, "max_item_bytes": 40}, [90, *[5] * 31], 90),
        ({"pool_bytes": 100, "max_item_bytes": 40}, [90, *[5] * 32], 5),
        ({}, [7], 7),
    ],
)
def test_estimates(limits, seen, estimate):
    sizes = Sizes()
    for nbytes in seen:
        sizes.note(FINGERPRINT, nbytes)
    assert sizes.estimate(encoder(**limits)) == estimate


def test_what_one_fingerprint_makes_says_nothing_of_another():
    sizes = Sizes()
    sizes.note(dataclasses.replace(FINGERPRINT, weights="w1"), 7)
    assert sizes.estimate(encoder(max_item_bytes=40)) == 40


def test_what_is_given_out_in_pages_takes_up_whole_ones():
    sizes = Sizes()
    sizes.note(FINGERPRINT, 17)
    assert sizes.estimate(encoder(pool_bytes=100, page_bytes=16)) == 32
    assert sizes.estimate(encoder(pool_bytes=20, page_bytes=16)) == 20
    assert [occupied(nbytes, encoder(page_bytes=16)) for nbytes in (0, 1, 16, 17)] == [0, 16, 16, 32]
    assert occupied(17, encoder()) == 17
