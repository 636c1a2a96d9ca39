# SPDX-License-Identifier: Apache-2.0
"""The search for a goodput ends whatever the requests are."""

from vllm_epd.planner.fleet import Fleet
from vllm_epd.planner.search.objective import WIDEST, Goodput, Slo
from vllm_epd.planner.simulate.outcome import Outcome, Served
from vllm_epd.planner.workload.requests import Request
from vllm_epd.topology import Topology


def test_requests_that_are_always_fast_enough_end_the_search():
    def simulate(fleet, requests):
        served = [Served(each.number, each.at, each.at + 0.5, each.at + 1, 10, None, "P0", "D0") for each in requests]
        return Outcome(served, [], [], 0.0)

    goodput = Goodput(simulate, [Request(number, float(number), 1, 10) for number in range(12)], Slo(1, 1), lambda _: 2)
    assert goodput.near(Fleet(Topology.parse("EPD")), 2).rate >= 2 * WIDEST
