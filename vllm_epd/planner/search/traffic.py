# SPDX-License-Identifier: Apache-2.0
"""The same requests at another rate, fewer or more of them, or with more or less media. Pure."""

from collections.abc import Sequence
from dataclasses import replace

from vllm_epd.errors import ConfigError
from vllm_epd.planner.workload.requests import Item, Request


def rate_of(requests: Sequence[Request]) -> float:
    """Requests in a second.

    Raises:
        ConfigError: there are too few, or they come at once.
    """
    if len(requests) < 2:
        raise ConfigError(f"a rate needs at least 2 requests, got {len(requests)}")
    span = requests[-1].at - requests[0].at
    if not span > 0:
        raise ConfigError(f"all {len(requests)} requests come at the same time; a plan needs some that keep coming")
    return (len(requests) - 1) / span


def at_rate(requests: Sequence[Request], rate: float) -> list[Request]:
    """The same requests, in the same pattern, so many in a second."""
    factor = rate_of(requests) / rate
    return [replace(request, at=request.at * factor) for request in requests]


def resized(requests: Sequence[Request], count: int, start: int = 0) -> list[Request]:
    """So many of them, from the one at `start` on; all of them again and again, with media that is new each time."""
    gap = 1 / rate_of(requests)
    period = requests[-1].at - requests[0].at + gap
    names = 1 + max((item.name or 0 for request in requests for item in request.items), default=0)
    made = []
    for number in range(count):
        turn, index = divmod(start + number, len(requests))
        request = requests[index]
        items = tuple(_renamed(item, turn * names) for item in request.items)
        at = request.at + turn * period - requests[start % len(requests)].at - start // len(requests) * period
        made.append(replace(request, number=number, at=at, items=items))
    return made


def with_media(requests: Sequence[Request], factor: float) -> list[Request]:
    """Each request with so many times its media, in the mean over all where it does not come out even.

    Additional items have the sizes of those that are there, and are like no others.
    """
    owed = 0.0
    made = []
    for request in requests:
        owed += len(request.items) * factor
        count = int(owed + 0.5) if request.items else 0
        owed -= count
        items = (request.items[index % len(request.items)] for index in range(len(request.items), count))
        more = tuple(replace(item, name=None) for item in items)
        made.append(replace(request, items=request.items[:count] + more))
    return made


def _renamed(item: Item, by: int) -> Item:
    return item if item.name is None else replace(item, name=item.name + by)
