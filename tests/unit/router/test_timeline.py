# SPDX-License-Identifier: Apache-2.0
"""What the time of a request goes to, by a clock that moves when told."""

import time
from collections.abc import Callable
from contextlib import contextmanager

import pytest

from tests.unit.router.conftest import Clock
from vllm_epd.router.timeline import QUEUE, Span, Timeline, server_timing
from vllm_epd.types import Role

#: What a request with its timeline may cost, in as many empty blocks of the standard library. 1.5 to 1.8 were seen.
MOST = 2.5


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def timeline(clock):
    return Timeline(clock)


def fails_in(block, clock, seconds):
    """Leave a block by an exception after so many seconds."""

    def fail():
        with block:
            clock.now += seconds
            raise TimeoutError

    with pytest.raises(TimeoutError):
        fail()


def test_every_stage_has_a_queue_and_a_span_of_its_own_name():
    assert {stage: str(span) for stage, span in QUEUE.items()} == {role: f"{role}_queue" for role in Role}
    assert [Span(role.value) for role in Role] == [Span.ENCODE, Span.PREFILL, Span.DECODE]


def test_nothing_is_known_of_what_was_not_entered(timeline):
    assert timeline.seconds() == {}
    assert timeline.ttft_s is None


def test_several_tries_add_up(timeline, clock):
    for seconds in (1.0, 2.0):
        with timeline.during(Span.PREFILL):
            clock.now += seconds
        clock.now += 10.0
    assert timeline.seconds() == {Span.PREFILL: 3.0}
    assert timeline.total_s() == 23.0


def test_a_try_that_fails_counts(timeline, clock):
    fails_in(timeline.during(Span.ENCODE), clock, 2.0)
    assert timeline.seconds() == {Span.ENCODE: 2.0}


def test_what_is_not_over_counts_up_to_now(timeline, clock):
    with timeline.during(Span.DECODE):
        clock.now += 1.5
        assert timeline.seconds() == {Span.DECODE: 1.5}
        assert timeline.is_open(Span.DECODE)
    assert not timeline.is_open(Span.DECODE)


def test_waiting_is_no_work(timeline, clock):
    with timeline.during(Span.PREFILL):
        clock.now += 1.0
        with timeline.during(Span.PREFILL_QUEUE, within=Span.PREFILL):
            clock.now += 4.0
            assert timeline.seconds() == {Span.PREFILL_QUEUE: 4.0, Span.PREFILL: 1.0}
        clock.now += 2.0
    assert timeline.seconds() == {Span.PREFILL_QUEUE: 4.0, Span.PREFILL: 3.0}


def test_a_wait_that_fails_goes_back_to_work(timeline, clock):
    with timeline.during(Span.DECODE):
        fails_in(timeline.during(Span.PREFILL_QUEUE, within=Span.DECODE), clock, 4.0)
        clock.now += 1.0
    assert timeline.seconds() == {Span.PREFILL_QUEUE: 4.0, Span.DECODE: 1.0}


def test_branches_at_the_same_time_count_once(timeline, clock):
    with timeline.during(Span.DECODE):
        clock.now += 1.0
        with timeline.during(Span.DECODE):
            clock.now += 1.0
            with timeline.during(Span.DECODE_QUEUE, within=Span.DECODE):
                clock.now += 1.0
    assert timeline.seconds() == {Span.DECODE_QUEUE: 1.0, Span.DECODE: 3.0}


def test_an_answer_begins_once(timeline, clock):
    clock.now += 0.25
    timeline.begin_answer()
    clock.now += 5.0
    timeline.begin_answer()
    assert timeline.ttft_s == 0.25


def test_the_header_has_milliseconds_in_the_order_of_the_way(timeline, clock):
    with timeline.during(Span.PREFILL):
        clock.now += 0.0123
    with timeline.during(Span.ROUTE):
        clock.now += 0.5
    assert server_timing(timeline) == "route;dur=500.0, prefill;dur=12.3, total;dur=512.3"


def test_the_header_says_that_decode_is_not_over(timeline, clock):
    with timeline.during(Span.DECODE):
        clock.now += 0.1
        assert server_timing(timeline) == 'decode;dur=100.0;desc="until the first token", total;dur=100.0'
    assert server_timing(timeline) == "decode;dur=100.0, total;dur=100.0"


def _whole_way():
    timeline = Timeline()
    with timeline.during(Span.RECEIVE):
        pass
    with timeline.during(Span.ROUTE):
        pass
    for stage in Role:
        with timeline.during(Span(stage.value)), timeline.during(QUEUE[stage], within=Span(stage.value)):
            pass
    timeline.begin_answer()
    return timeline


def _empty_blocks():
    for _ in range(2 + 2 * len(Role)):
        with _empty_block():
            pass


@contextmanager
def _empty_block():
    yield


def _seconds(run: Callable[[], object]) -> float:
    began = time.perf_counter()
    for _ in range(200):
        run()
    return time.perf_counter() - began


def test_it_costs_little():
    rounds = [(_seconds(_whole_way), _seconds(_empty_blocks)) for _ in range(20)]
    timeline, empty = map(min, zip(*rounds, strict=True))
    assert timeline < MOST * empty
