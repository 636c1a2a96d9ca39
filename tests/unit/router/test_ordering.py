# SPDX-License-Identifier: Apache-2.0
"""Who of those that wait is next, and that nobody waits for ever."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vllm_epd.errors import ConfigError
from vllm_epd.router.ordering import (
    AGEING_SLACK,
    AGEING_TOKENS_PER_S,
    LATE_S,
    MAX_SLO_S,
    MAX_WORK,
    ORDERS,
    Ticket,
    fcfs,
    order_named,
    sjf,
    slack,
)

TIMES = st.floats(0, 1e5)
TICKETS = st.builds(
    lambda arrived, work, slo, service: Ticket(arrived, work, None if slo is None else arrived + slo, service),
    TIMES,
    st.floats(0, 1e9),
    st.none() | st.floats(0, 1e9),
    st.floats(0, 1e4),
)

#: How long after a request others may come and still be served before it, in seconds.
OVERTAKING_S = {
    "fcfs": lambda ticket: 0.0,
    "sjf": lambda ticket: min(ticket.work, MAX_WORK) / AGEING_TOKENS_PER_S,
    "slack": lambda ticket: (MAX_SLO_S + LATE_S) / (1 + AGEING_SLACK),
}


def test_first_come_first_served():
    assert fcfs(Ticket(1.0, work=9.0), 5.0).key < fcfs(Ticket(2.0, work=1.0), 5.0).key


def test_the_shortest_job_first():
    assert sjf(Ticket(1.0, work=100.0), 5.0).key < sjf(Ticket(1.0, work=200.0), 5.0).key


def test_a_long_job_that_has_waited_goes_before_a_short_one():
    assert sjf(Ticket(0.0, work=5000.0), 9.0).key < sjf(Ticket(6.0, work=1.0), 9.0).key
    assert sjf(Ticket(0.0, work=5000.0), 9.0).key > sjf(Ticket(4.0, work=1.0), 9.0).key


def test_the_least_slack_first():
    assert slack(Ticket(0.0, due=2.0), 0.0).key < slack(Ticket(0.0, due=3.0), 0.0).key
    assert slack(Ticket(0.0, due=3.0, service_s=2.0), 0.0).key < slack(Ticket(0.0, due=2.0, service_s=0.5), 0.0).key
    assert slack(Ticket(0.0, due=60.0), 0.0).key < slack(Ticket(0.0), 0.0).key


def test_who_cannot_be_in_time_any_more_steps_back():
    late, in_time = Ticket(0.0, due=3.0, service_s=1.0), Ticket(1.0, due=5.0, service_s=1.0)
    assert slack(late, 2.0).key < slack(in_time, 2.0).key
    assert slack(late, 2.1).key > slack(in_time, 2.1).key
    assert slack(late, 9.0).key < slack(Ticket(9.0, due=10.0), 9.0).key


def test_who_can_never_be_in_time_does_not_come_before_others_for_that():
    assert (
        slack(Ticket(1.0, due=1.5, service_s=100.0), 2.0).key < slack(Ticket(2.0, due=2.5, service_s=1000.0), 2.0).key
    )


@given(st.sampled_from(sorted(ORDERS)), TICKETS, TICKETS, st.floats(0, 1e4))
def test_who_comes_much_later_never_comes_first(name, first, second, waited_s):
    bound, now = OVERTAKING_S[name](first), second.arrived + waited_s
    if second.arrived > first.arrived + bound + 1e-6:
        assert ORDERS[name](first, now).key < ORDERS[name](second, now).key


@given(
    st.sampled_from(sorted(ORDERS)),
    TICKETS.filter(lambda each: each.work <= 1e5),
    st.lists(st.tuples(st.floats(0.25, 2.0), st.floats(0, 1e3), st.floats(0.0, 30.0)), min_size=1, max_size=20),
)
def test_nobody_waits_longer_than_the_bound_while_others_come_as_fast_as_they_are_served(name, victim, rivals):
    order, bound = ORDERS[name], OVERTAKING_S[name](victim)
    waiting, now = [victim], victim.arrived
    for number, (gap, work, slo) in enumerate(itertools.cycle(rivals), start=1):
        now += gap
        waiting.append(Ticket(now, work, now + slo))
        served = min(waiting, key=lambda each: order(each, now).key)
        if served is victim:
            break
        waiting.remove(served)
        assert now <= victim.arrived + bound + 1e-6, f"overtaken {number} times"


@given(st.sampled_from(sorted(ORDERS)), TICKETS, st.floats(0, 1e4), st.floats(0, 1))
def test_a_key_holds_until_it_is_said_to(name, ticket, waited_s, part):
    now = ticket.arrived + waited_s
    rank = ORDERS[name](ticket, now)
    later = now + part * max(0.0, min(rank.until, now + 1e5) - now)
    assert ORDERS[name](ticket, min(later, rank.until)) == rank


def test_an_unknown_order_is_answered_with_the_known_ones():
    with pytest.raises(ConfigError, match="unknown queue order 'lifo'; known: fcfs, sjf, slack"):
        order_named("lifo")
