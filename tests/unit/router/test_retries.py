# SPDX-License-Identifier: Apache-2.0
"""What is tried again, how often, and after how long."""

from random import Random

import pytest

from vllm_epd.errors import UpstreamError
from vllm_epd.router.failures import BrokenOffError, UnreachableError
from vllm_epd.router.retries import BACKOFF_S, LONGEST_BACKOFF_S, RetryBudget, Tries


def answered(status=500, stage="decode"):
    return UpstreamError("no", stage=stage, status=status)


BROKEN = BrokenOffError("gone", stage="decode")
UNREACHABLE = UnreachableError("gone", stage="decode", instance=None)


@pytest.mark.parametrize("error", [BROKEN, UNREACHABLE], ids=["broken off", "unreachable"])
def test_what_an_instance_could_not_answer_is_tried_as_often_as_allowed(error):
    tries = Tries(3)
    assert [tries.another(error) for _ in range(5)] == [True, True, True, False, False]


def test_what_an_instance_has_answered_is_tried_once_more():
    tries = Tries(3)
    assert [tries.another(error) for error in (answered(), answered(503), BROKEN)] == [True, False, True]


@pytest.mark.parametrize("status", [400, 404, 413, 422, 429, 501, 504])
def test_what_would_end_in_the_same_way_is_not_tried_again(status):
    assert not Tries(3).another(answered(status))


def test_encoding_has_been_tried_elsewhere_already():
    assert not Tries(3).another(answered(stage="encode"))
    assert Tries(3).another(BrokenOffError("gone", stage="encode"))


def test_the_waits_grow_and_differ():
    tries, random = Tries(10), Random(1)
    longest = [min(BACKOFF_S * 2**number, LONGEST_BACKOFF_S) for number in range(10)]
    for most in longest:
        assert tries.another(BROKEN)
        waits = {tries.backoff_s(random) for _ in range(20)}
        assert len(waits) > 1
        assert all(most / 2 <= wait <= most for wait in waits)


def test_the_budget_is_a_part_of_the_requests(clock):
    budget = RetryBudget(clock, ratio=0.2, per_s=0.0, most=2.0)
    assert [budget.withdraw() for _ in range(3)] == [True, True, False]
    for _ in range(5):
        budget.deposit()
    assert [budget.withdraw() for _ in range(2)] == [True, False]


def test_the_budget_grows_with_time_up_to_its_limit(clock):
    budget = RetryBudget(clock, ratio=0.0, per_s=10.0, most=5.0)
    while budget.withdraw():
        pass
    clock.now += 0.25
    assert [budget.withdraw() for _ in range(3)] == [True, True, False]
    clock.now += 100.0
    assert sum(budget.withdraw() for _ in range(10)) == 5
