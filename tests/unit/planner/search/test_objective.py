# SPDX-License-Identifier: Apache-2.0
import pytest

from vllm_epd.errors import ConfigError
from vllm_epd.planner.fleet import Fleet
from vllm_epd.planner.search.objective import WIDEST, AtRate, Goodput, Score, Slo, attainment, first_look
from vllm_epd.planner.search.traffic import rate_of
from vllm_epd.planner.simulate.outcome import Outcome, Refused, Served
from vllm_epd.planner.workload.requests import Request
from vllm_epd.topology import Topology

FLEET = Fleet(Topology.parse("EPD"))
REQUESTS = [Request(number, float(number), 10, 10) for number in range(400)]
SLO = Slo(1.0, 0.1, 0.9)


def _served(number, ttft, tpot):
    return Served(number, 0.0, ttft, ttft + 9 * tpot, 10, None, "P0", "D0")


class Line:
    """A server that keeps its promises to all up to a rate, and to fewer and fewer beyond it."""

    def __init__(self, most):
        self.most, self.runs = most, []

    def __call__(self, fleet, requests):
        rate = rate_of(requests)
        self.runs.append(len(requests))
        kept = min(1.0, (self.most / rate) ** 2) * len(requests)
        return Outcome([_served(r.number, 0.5 if r.number < kept else 2.0, 0.05) for r in requests], [], [], 1.0)


def _goodput(line, capacity):
    return Goodput(line, REQUESTS, SLO, lambda fleet: capacity)


@pytest.mark.parametrize("capacity", [0.01, 4.0, 5000.0])
def test_goodput_is_found_from_wherever_the_search_begins(capacity):
    score = _goodput(Line(7.0), capacity).score(FLEET, None)
    exact = 7.0 / 0.9**0.5
    assert exact / 1.015 <= score.rate <= exact * 1.001
    assert score.attainment >= 0.9
    assert not score.rough


def test_what_never_keeps_its_promises_has_no_goodput():
    score = Goodput(lambda *_: Outcome([_served(0, 2.0, 0.05)], [], [], 1.0), REQUESTS, SLO, lambda _: 5.0).score(
        FLEET, None
    )
    assert (score.rate, score.attainment) == (0.0, 0.0)
    assert score.value < 0


def test_what_always_keeps_its_promises_ends_the_search_too():
    always = Goodput(Line(float("inf")), REQUESTS, SLO, lambda _: 5.0)
    assert 2 * WIDEST <= always.near(FLEET, 2).rate < 10 * WIDEST


def test_hopeless_fleet_costs_part_of_a_run():
    line = Line(3.0)
    score = _goodput(line, 10.0).score(FLEET, Score(10.0, 10.0, 0.95))
    assert score.rough
    assert score.value < 3.0
    assert line.runs == [100]


def test_worse_fleet_costs_one_run():
    line = Line(9.3)
    score = _goodput(line, 10.0).score(FLEET, Score(10.0, 10.0, 0.95))
    assert score.rough
    assert 9.0 < score.value < 10.0
    assert line.runs == [100, 400]


def test_better_fleet_is_measured():
    line = Line(12.0)
    score = _goodput(line, 10.0).score(FLEET, Score(10.0, 10.0, 0.95))
    assert line.runs[:2] == [100, 400]
    assert len(line.runs) <= 9
    assert not score.rough
    assert score.value == pytest.approx(12.0 / 0.9**0.5, rel=0.02)


def test_at_a_rate():
    line = Line(10.0)
    objective = AtRate(_goodput(line, 10.0), 9.0)
    good = objective.score(FLEET, None)
    assert objective.enough(good)
    assert good.rate == 9.0
    bad = AtRate(_goodput(Line(5.0), 10.0), 9.0)
    worse = bad.score(FLEET, good)
    assert worse.rough
    assert not bad.enough(worse)


def test_attainment_counts_all_requests():
    served = [_served(0, 1.0, 0.1), _served(1, 1.1, 0.05), _served(2, 0.5, 0.2)]
    assert attainment(Outcome(served, [Refused(3, "too large")], [], 1.0), Slo(1.0, 0.1001)) == 0.25


def test_first_look_takes_enough():
    assert len(first_look(REQUESTS)) == 100
    assert len(first_look(REQUESTS[:80])) == 60


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ((0.0, 0.1), "targets must be more than 0 s, got TTFT 0.0 s"),
        ((1.0, -0.1), "and TPOT -0.1 s"),
        ((float("nan"), 0.1), "got TTFT nan s"),
        ((1.0, 0.1, 0.0), "above 0 and at most 1, got 0.0"),
        ((1.0, 0.1, 1.1), "above 0 and at most 1, got 1.1"),
    ],
)
def test_promises_that_are_none_are_refused(values, message):
    with pytest.raises(ConfigError, match=message):
        Slo(*values)
