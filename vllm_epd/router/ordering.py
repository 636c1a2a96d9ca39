# SPDX-License-Identifier: Apache-2.0
"""Who of those that wait is next: pure keys, of which the smallest goes first.

Ageing: a waiting request becomes more urgent by a fixed amount with each second. All of those that wait gain alike, so
that what a key tells apart is when they came, and what they ask for; and what they can ask for is bounded. So a request
is overtaken only by those that come within a bounded time after it, and nobody waits for ever.
"""

import math
from collections.abc import Callable, Mapping
from typing import NamedTuple

from msgspec import Struct

from vllm_epd.router.named import named

#: Tokens of work that a second of waiting makes up for, where the shortest job goes first.
AGEING_TOKENS_PER_S = 1000.0
#: Seconds of slack that a second of waiting makes up for, beside the second by which the deadline has come closer.
AGEING_SLACK = 0.5
#: A request whose deadline cannot be met any more goes behind those that come so many seconds later and are in time.
LATE_S = 10.0
#: No deadline is further away, whatever a request says.
MAX_SLO_S = 600.0
#: No work is more, whatever a request says: longer prompts than any model takes.
MAX_WORK = 10_000_000.0


class Ticket(Struct, frozen=True):
    """What is known of a request that waits for a stage.

    Attributes:
        arrived: when it came to the router, in seconds of the router's clock.
        work: what this stage has to do for it, in tokens.
        due: by when its first token should be there, on the same clock; None if it does not matter.
        service_s: how long this stage takes for it once it has its place, as far as it is known.
    """

    arrived: float
    work: float = 0.0
    due: float | None = None
    service_s: float = 0.0


class Rank(NamedTuple):
    """A key, and the last moment at which it holds."""

    key: float
    until: float = math.inf


#: `(ticket, now) -> rank`
Order = Callable[[Ticket, float], Rank]


def fcfs(ticket: Ticket, now: float) -> Rank:
    """First come, first served."""
    return Rank(ticket.arrived)


def sjf(ticket: Ticket, now: float) -> Rank:
    """The shortest job first, but no request is overtaken for longer than its work divided by the ageing."""
    return Rank(min(ticket.work, MAX_WORK) + AGEING_TOKENS_PER_S * ticket.arrived)


def slack(ticket: Ticket, now: float) -> Rank:
    """The least slack first: what is left until the deadline once the stage has done its work.

    A request without a deadline has as much slack as there can be. Where there is more to do than can be done in time,
    those that are late would make the others late too, one after the other; so they step back, once.
    """
    latest = ticket.arrived + MAX_SLO_S
    due = latest if ticket.due is None else min(ticket.due, latest)
    start = due - ticket.service_s
    key = max(start, ticket.arrived) + AGEING_SLACK * ticket.arrived
    return Rank(key + LATE_S) if start < now else Rank(key, until=start)


ORDERS: Mapping[str, Order] = {"fcfs": fcfs, "sjf": sjf, "slack": slack}


def order_named(name: str) -> Order:
    """The order of that name.

    Raises:
        ConfigError: there is none; the message lists those that there are.
    """
    return named("queue order", ORDERS, name)
