# SPDX-License-Identifier: Apache-2.0
"""The guard's verdict, by the errors that it is told."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vllm_epd.transfer.codec_guard import MOST_ERROR, TRIAL_ITEMS, CodecGuard, CodecState

NAN = math.nan
errors = st.floats(0, 1) | st.sampled_from([NAN, math.inf])


def judged(seen, **changes):
    guard = CodecGuard(enabled=True, **changes)
    for error in seen:
        guard.observe(error)
    return guard


def test_without_a_codec_there_is_nothing_to_judge():
    guard = CodecGuard(enabled=False)
    guard.observe(1.0)
    assert (guard.state, guard.worst) == (CodecState.OFF, 0.0)


@pytest.mark.parametrize(
    ("seen", "state", "worst"),
    [
        ([], CodecState.TRIAL, 0.0),
        ([0.01], CodecState.TRIAL, 0.01),
        ([0.01, 0.1], CodecState.ACTIVE, 0.1),
        ([0.01, NAN], CodecState.TRIAL, 0.01),
        ([NAN, 0.03, NAN, 0.01], CodecState.ACTIVE, 0.03),
        ([0.11], CodecState.REFUSED, 0.11),
        ([0.0, math.inf], CodecState.REFUSED, math.inf),
    ],
)
def test_items_within_the_bound_make_it_active_and_one_beyond_refuses_it(seen, state, worst):
    guard = judged(seen, items=2, bound=0.1)
    assert (guard.state, guard.worst) == (state, worst)


@given(st.lists(errors), st.lists(errors))
def test_a_verdict_is_final_and_comes_of_the_first_items_alone(first, later):
    guard = judged(first)
    state, worst = guard.state, guard.worst
    for error in later:
        guard.observe(error)
    if state is not CodecState.TRIAL:
        assert (guard.state, guard.worst) == (state, worst)
    finite = [error for error in first if not math.isnan(error)][:TRIAL_ITEMS]
    beyond = any(error > MOST_ERROR for error in finite)
    assert (state is CodecState.REFUSED) == beyond
    assert (state is CodecState.ACTIVE) == (not beyond and len(finite) == TRIAL_ITEMS)
