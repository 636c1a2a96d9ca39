# SPDX-License-Identifier: Apache-2.0
"""Room in an engine that prefills or decodes."""

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.router.test_plan import instance
from vllm_epd.router.capacity import Ask, Seated
from vllm_epd.router.seats import Seat

ASKS = st.builds(Ask, st.integers(1, 4), st.floats(0, 1e5))


def bounded(**limits):
    one = instance("one", "P")
    one.info = dataclasses.replace(one.info, limits=limits)
    return one


@pytest.mark.parametrize(
    ("limits", "fits"),
    [
        ({}, True),
        ({"max_num_seqs": 2}, True),
        ({"max_num_seqs": 1}, False),
        ({"kv_tokens": 1000}, True),
        ({"kv_tokens": 999}, False),
        ({"max_num_seqs": 9, "kv_tokens": 999}, False),
    ],
)
def test_both_bounds_hold(limits, fits):
    one = bounded(**limits)
    one.seated.take(Ask(1, 500.0))
    assert one.seated.fits(Ask(1, 500.0), one.info) is fits


def test_what_is_larger_than_the_engine_has_room_where_nobody_is():
    one = bounded(max_num_seqs=2, kv_tokens=10)
    assert one.seated.fits(Ask(5, 99.0), one.info)


@given(st.lists(ASKS, max_size=12), st.randoms())
def test_what_is_taken_is_given_back(asks, chance):
    seated = Seated()
    for ask in asks:
        seated.take(ask)
    for ask in chance.sample(asks, len(asks)):
        seated.drop(ask)
    assert seated == Seated()


def test_a_seat_ends_once():
    freed, one = [], instance("one", "P")
    with Seat(one, Ask(2, 10.0, 30.0), lambda: freed.append(one.seated.sequences)) as seat:
        assert (one.outstanding, one.work, one.seated) == (1, 30.0, Seated(2, 10.0))
        seat.end()
        assert (one.outstanding, one.work, one.seated) == (0, 0.0, Seated())
    assert freed == [0]
