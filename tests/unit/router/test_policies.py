# SPDX-License-Identifier: Apache-2.0
"""Choosing one of several equally able instances."""

import pytest

from tests.unit.router.test_plan import named
from vllm_epd.errors import ConfigError
from vllm_epd.router.context import Chooser
from vllm_epd.router.policies import POLICIES, least_outstanding, policy_named, round_robin
from vllm_epd.types import Role


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
    assert least_outstanding(outstanding, turn) == chosen


def test_round_robin_does_not_look_at_the_work():
    assert [round_robin((9, 0, 5), turn) for turn in range(4)] == [0, 1, 2, 0]


@pytest.mark.parametrize("name", POLICIES)
def test_every_policy_chooses_one_of_those_there_are(name):
    for count in (1, 2, 5):
        assert all(0 <= POLICIES[name]([1] * count, turn) < count for turn in range(10))


def test_an_unknown_policy_is_answered_with_the_known_ones():
    with pytest.raises(ConfigError, match="'random'; known: least_outstanding, round_robin"):
        policy_named("random")


def test_stages_take_turns_on_their_own():
    chooser = Chooser(round_robin)
    one, other = named("PD", "PD")
    assert chooser.pick(Role.PREFILL, [one, other]) is one
    assert chooser.pick(Role.DECODE, [one, other]) is one
    assert chooser.pick(Role.PREFILL, [one, other]) is other


def test_what_is_busy_is_avoided():
    chooser = Chooser(least_outstanding)
    one, other = named("PD", "PD")
    with one.busy():
        assert {chooser.pick(Role.DECODE, [one, other]).name for _ in range(4)} == {other.name}
