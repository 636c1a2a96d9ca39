# SPDX-License-Identifier: Apache-2.0
"""Choosing one of several equally able instances."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.router.conftest import busy
from tests.unit.router.test_plan import named
from vllm_epd.errors import ConfigError
from vllm_epd.router.choosing import Chooser
from vllm_epd.router.policies import (
    FAR_MORE,
    POLICIES,
    Load,
    cache_aware,
    least_loaded,
    least_outstanding,
    policy_named,
    round_robin,
)
from vllm_epd.types import Role

LOADS = st.builds(Load, st.integers(0, 9), st.floats(0, 1e6), st.floats(0, 1e6))


def calls(*counts):
    return [Load(count) for count in counts]


def working(*works):
    return [Load(1, work) for work in works]


@pytest.mark.parametrize(
    ("outstanding", "turn", "chosen"),
    [
        ((3, 1, 2), 0, 1),
        ((3, 1, 2), 7, 1),
        ((0, 0, 0), 0, 0),
        ((0, 0, 0), 4, 1),
        ((2, 1, 1), 0, 1),
        ((2, 1, 1), 1, 2),
    ],
)
def test_least_outstanding(outstanding, turn, chosen):
    assert least_outstanding(calls(*outstanding), turn) == chosen


def test_round_robin_does_not_look_at_the_work():
    assert [round_robin(calls(9, 0, 5), turn) for turn in range(4)] == [0, 1, 2, 0]


def test_least_loaded_looks_at_the_work_and_not_at_the_calls():
    assert least_loaded([Load(1, 5000.0), Load(9, 900.0)], 0) == 1


def test_least_loaded_looks_at_the_calls_where_the_work_is_equal():
    assert least_loaded([Load(2, 10.0), Load(1, 10.0)], 0) == 1
    assert [least_loaded(working(7, 7), turn) for turn in range(3)] == [0, 1, 0]


def test_cache_aware_takes_who_holds_most():
    assert cache_aware([Load(0), Load(1, 100.0, holds=128.0), Load(1, 90.0, holds=64.0)], 0) == 1


def test_cache_aware_takes_the_least_loaded_where_nobody_holds_anything():
    assert cache_aware(working(9, 4, 6), 0) == 1


def test_cache_aware_passes_over_who_is_loaded_far_more():
    held = 500.0
    assert cache_aware([Load(1, 1000.0), Load(1, FAR_MORE * 1000.0 + held, holds=held)], 0) == 1
    assert cache_aware([Load(1, 1000.0), Load(1, FAR_MORE * 1000.0 + held + 1, holds=held)], 0) == 0


@given(st.lists(LOADS, min_size=1, max_size=6), st.integers(0, 10**9), st.sampled_from(sorted(POLICIES)))
def test_every_policy_chooses_one_of_those_there_are(loads, turn, name):
    assert 0 <= POLICIES[name](loads, turn) < len(loads)


@given(st.lists(LOADS, min_size=1, max_size=6), st.integers(0, 99))
def test_whoever_cache_aware_chooses_for_what_it_holds_is_not_loaded_far_more(loads, turn):
    chosen = loads[cache_aware(loads, turn)]
    least = min(load.work for load in loads)
    assert chosen.work <= FAR_MORE * least + chosen.holds


def test_an_unknown_policy_is_answered_with_the_known_ones():
    with pytest.raises(ConfigError, match="'random'; known: cache_aware, least_loaded, least_outstanding, round_robin"):
        policy_named("random")


def test_stages_take_turns_on_their_own():
    chooser = Chooser(dict.fromkeys(Role, round_robin))
    one, other = named("PD", "PD")
    assert chooser.pick(Role.PREFILL, [one, other]) is one
    assert chooser.pick(Role.DECODE, [one, other]) is one
    assert chooser.pick(Role.PREFILL, [one, other]) is other


def test_stages_have_their_own_policies():
    chooser = Chooser({Role.ENCODE: cache_aware, Role.PREFILL: least_loaded, Role.DECODE: least_outstanding})
    one, other = named("PD", "PD")
    with busy(one, 5.0), busy(other, 1.0), busy(other, 1.0):
        assert chooser.pick(Role.PREFILL, [one, other]) is other
        assert chooser.pick(Role.DECODE, [one, other]) is one
        assert chooser.pick(Role.ENCODE, [one, other], lambda instance: 9.0 if instance is one else 0.0) is one
    assert [chooser.asks_who_holds(role) for role in Role] == [True, False, False]


def test_what_is_busy_is_avoided():
    chooser = Chooser(dict.fromkeys(Role, least_outstanding))
    one, other = named("PD", "PD")
    with busy(one):
        assert {chooser.pick(Role.DECODE, [one, other]).name for _ in range(4)} == {other.name}
