# SPDX-License-Identifier: Apache-2.0
"""Those that wait, in order."""

from hypothesis import given
from hypothesis import strategies as st

from tests.unit.router.test_ordering import TICKETS
from vllm_epd.router.line import Line
from vllm_epd.router.ordering import ORDERS, Ticket, fcfs, sjf

STEPS = st.lists(st.tuples(st.sampled_from(["add", "serve", "leave"]), TICKETS, st.floats(0, 50)), max_size=60)


@given(st.sampled_from(sorted(ORDERS)), STEPS, st.randoms())
def test_the_front_is_the_least_of_all_that_wait(name, steps, chance):
    line, present, now = Line(ORDERS[name]), {}, 0.0
    for what, ticket, passed in steps:
        now += passed
        if what == "add":
            item = object()
            present[line.add(ticket, item, now)] = (ticket, item)
        elif present:
            first = min(present, key=lambda number: (ORDERS[name](present[number][0], now).key, number))
            assert line.front(now) is present[first][1]
            gone = first if what == "serve" else chance.choice(sorted(present))
            line.remove(gone)
            del present[gone]
        assert len(line) == len(present)
        ahead = [each for each, _ in present.values() if ORDERS[name](each, now).key <= ORDERS[name](ticket, now).key]
        assert sorted(map(repr, line.before(ticket, now))) == sorted(map(repr, ahead))
        assert sorted(map(repr, line.tickets())) == sorted(repr(each) for each, _ in present.values())


def test_of_equals_the_one_that_was_added_first_comes_first():
    line = Line(fcfs)
    line.add(Ticket(1.0), "a", 1.0)
    line.add(Ticket(1.0), "b", 1.0)
    assert line.front(2.0) == "a"


def test_a_newcomer_comes_behind_its_equals():
    line = Line(sjf)
    line.add(Ticket(1.0, work=5.0), "a", 1.0)
    assert [ticket.work for ticket in line.before(Ticket(1.0, work=5.0), 1.0)] == [5.0]
