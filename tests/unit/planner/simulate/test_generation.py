# SPDX-License-Identifier: Apache-2.0
"""Steps that are skipped take what they would take one by one."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.planner.simulate.conftest import CONTEXT_S, PROFILE, SEQUENCE_S, STEP_S, TOKEN_S
from vllm_epd.planner.fleet import Fleet, Limits
from vllm_epd.planner.simulate.run import simulate
from vllm_epd.planner.workload.requests import Request
from vllm_epd.topology import Topology


def step_by_step(requests):
    """When each of these is done at one instance that does everything, by a loop over single steps."""
    waiting = list(requests)
    computed, active, done = [], {}, {}
    now = 0.0
    while waiting or computed or active:
        computed += [each for each in waiting if each.at <= now]
        waiting = [each for each in waiting if each not in computed]
        if not computed and not active:
            now = waiting[0].at
            continue
        seconds = sum(each.text_tokens for each in computed) * TOKEN_S
        if active:
            context = sum(each.text_tokens + generated for each, generated in active.items())
            seconds += STEP_S + SEQUENCE_S * len(active) + CONTEXT_S * context
        now += seconds
        active = {each: generated + 1 for each, generated in active.items()}
        active |= dict.fromkeys(computed, 1)
        computed = []
        done |= {each.number: now for each, generated in active.items() if generated == each.output_tokens}
        active = {each: generated for each, generated in active.items() if generated < each.output_tokens}
    return done


REQUESTS = st.lists(
    st.tuples(st.floats(0, 3), st.integers(1, 400), st.integers(1, 80)),
    min_size=1,
    max_size=12,
    unique_by=lambda drawn: drawn[0],
)


APART_S = 2**0.5 * 1e-4
"""So that nobody comes at the very moment at which a step ends: who was first then is a matter of rounding."""


@given(drawn=REQUESTS)
def test_they_do_whoever_comes_meanwhile(drawn):
    times = sorted(at for at, _, _ in drawn)
    requests = [
        Request(number, at + number * APART_S, text, output)
        for number, (at, (_, text, output)) in enumerate(zip(times, drawn, strict=True))
    ]
    limits = Limits(prefill_sequences=100, batched_tokens=10**6)
    outcome = simulate(Fleet(Topology.parse("PD"), limits, tier="none"), PROFILE, requests)
    expected = step_by_step(requests)
    assert {each.number: each.done for each in outcome.served} == pytest.approx(expected, abs=1e-6)
