# SPDX-License-Identifier: Apache-2.0
import pytest

from vllm_epd.errors import ConfigError
from vllm_epd.planner.search.traffic import at_rate, rate_of, resized, with_media
from vllm_epd.planner.workload.requests import Item, Kind, Request

NAMED, PLAIN = Item(Kind.IMAGE, 10, 20, name=0), Item(Kind.IMAGE, 30, 40)
REQUESTS = [
    Request(0, 0.0, 5, 1, (NAMED,)),
    Request(1, 1.0, 6, 1),
    Request(2, 5.0, 7, 1, (NAMED, PLAIN)),
    Request(3, 6.0, 8, 1, (PLAIN,)),
]


def test_rate_changes_and_the_pattern_stays():
    assert rate_of(REQUESTS) == 0.5
    faster = at_rate(REQUESTS, 2.0)
    assert [request.at for request in faster] == [0.0, 0.25, 1.25, 1.5]
    assert rate_of(faster) == pytest.approx(2.0)
    assert [request.items for request in faster] == [request.items for request in REQUESTS]


@pytest.mark.parametrize(
    ("requests", "message"),
    [
        (REQUESTS[:1], "at least 2 requests, got 1"),
        ([REQUESTS[0], REQUESTS[0]], "all 2 requests come at the same time"),
    ],
)
def test_some_requests_have_no_rate(requests, message):
    with pytest.raises(ConfigError, match=message):
        rate_of(requests)


def test_fewer_requests_are_the_first_ones():
    assert resized(REQUESTS, 3) == REQUESTS[:3]


def test_more_requests_are_the_same_again_with_media_of_their_own():
    more = resized(REQUESTS, 8)
    assert [request.number for request in more] == list(range(8))
    assert [request.at for request in more] == [0, 1, 5, 6, 8, 9, 13, 14]
    assert [item.name for request in more for item in request.items] == [0, 0, None, None, 1, 1, None, None]
    assert rate_of(more) == pytest.approx(0.5)


def test_requests_from_a_later_one_on():
    later = resized(REQUESTS, 4, start=2)
    assert [request.at for request in later] == [0.0, 1.0, 3.0, 4.0]
    assert [request.text_tokens for request in later] == [7, 8, 5, 6]
    assert resized(REQUESTS, 4, start=6)[0].at == 0.0


def test_media_is_doubled():
    doubled = with_media(REQUESTS, 2.0)
    assert [len(request.items) for request in doubled] == [2, 0, 4, 2]
    assert doubled[0].items[0] == NAMED
    assert doubled[0].items[1].name is None


def test_media_is_halved_in_the_mean():
    many = [Request(number, float(number), 1, 1, (PLAIN,)) for number in range(100)]
    assert sum(len(request.items) for request in with_media(many, 0.5)) == 50
    assert with_media(REQUESTS, 1.0) == REQUESTS
