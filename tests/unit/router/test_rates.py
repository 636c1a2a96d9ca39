# SPDX-License-Identifier: Apache-2.0
"""How fast queues get shorter, and how long work takes."""

import pytest

from vllm_epd.router.rates import DrainRate, Pace, retry_after_s


def test_nothing_is_known_before_somebody_has_left():
    rate = DrainRate()
    rate.begin(0.0)
    assert rate.wait_s(5.0) is None


def test_the_wait_follows_from_what_has_left_while_others_waited():
    rate = DrainRate()
    rate.begin(0.0)
    for second in range(1, 6):
        rate.note(float(second), 10.0)
    assert rate.wait_s(100.0) == pytest.approx(10.0, rel=0.01)


def test_time_without_a_queue_does_not_count():
    rate = DrainRate()
    for start in (0.0, 1000.0):
        rate.begin(start)
        rate.note(start + 2.0, 4.0)
        rate.end()
    rate.note(5000.0, 99.0)
    assert rate.wait_s(4.0) == pytest.approx(2.0, rel=0.05)


def test_what_was_measured_long_ago_counts_less():
    rate = DrainRate()
    rate.begin(0.0)
    for second in range(1, 100):
        rate.note(float(second), 1.0)
    for second in range(100, 400):
        rate.note(float(second), 10.0)
    assert rate.wait_s(10.0) == pytest.approx(1.0, rel=0.01)


def test_the_pace_is_that_of_late():
    pace = Pace()
    assert pace.seconds(10.0) == 0.0
    pace.note(100.0, 1.0)
    assert pace.seconds(50.0) == 0.5
    for _ in range(50):
        pace.note(100.0, 3.0)
    pace.note(0.0, 9.0)
    assert pace.seconds(50.0) == pytest.approx(1.5, rel=0.01)


@pytest.mark.parametrize(("wait_s", "told"), [(None, 1), (0.0, 1), (0.2, 1), (1.2, 2), (9999.0, 60)])
def test_a_refused_client_is_told_whole_seconds(wait_s, told):
    assert retry_after_s(wait_s) == told
