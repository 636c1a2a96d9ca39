# SPDX-License-Identifier: Apache-2.0
"""Until when an answer is wanted."""

import pytest

from vllm_epd.errors import BadRequestError
from vllm_epd.router.deadlines import SLO_HEADER, TIMEOUT_HEADER, Deadline, read_deadline
from vllm_epd.router.failures import TooLateError


def test_headers_say_when():
    assert read_deadline({SLO_HEADER: "500", TIMEOUT_HEADER: "2000"}, 10.0, None) == Deadline(10.0, 10.5, 12.0)


def test_the_target_may_be_set_for_those_who_say_nothing():
    assert read_deadline({}, 10.0, 3.0) == Deadline(10.0, 13.0, None)
    assert read_deadline({SLO_HEADER: "500"}, 10.0, 3.0).due == 10.5
    assert read_deadline({}, 10.0, None) == Deadline(10.0)


@pytest.mark.parametrize("value", ["soon", "", "0", "-1", "nan", "inf"])
@pytest.mark.parametrize("name", [SLO_HEADER, TIMEOUT_HEADER])
def test_anything_else_than_milliseconds_is_refused(name, value):
    with pytest.raises(BadRequestError, match=f"{name} must be a positive number of milliseconds, got '{value}'"):
        read_deadline({name: value}, 0.0, None)


def test_a_call_may_take_what_is_left():
    deadline = Deadline(0.0, limit=10.0)
    assert (deadline.left_s(4.0, 60.0), deadline.left_s(4.0, 2.0), Deadline().left_s(4.0, 60.0)) == (6.0, 2.0, 60.0)
    with pytest.raises(TooLateError) as caught:
        deadline.left_s(10.0, 60.0)
    assert (caught.value.status, caught.value.retry_after_s) == (503, 1)
