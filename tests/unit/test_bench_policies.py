# SPDX-License-Identifier: Apache-2.0
"""The simulation that compares policies serves every request, and says the same each time."""

import pytest

from tests.bench.policies.fleet import SETTINGS
from tests.bench.policies.simulate import Simulation
from tests.bench.policies.trace import build_trace

TRACE = build_trace(requests=60)


def test_the_trace_is_the_same_each_time():
    assert build_trace(requests=60) == TRACE
    assert build_trace(requests=60, seed=1) != TRACE
    assert [each.at for each in TRACE] == sorted(each.at for each in TRACE)


@pytest.mark.parametrize("setting", SETTINGS, ids=str)
def test_every_request_is_served_and_nothing_depends_on_chance(setting):
    first, second = Simulation(TRACE, setting).run(), Simulation(TRACE, setting).run()
    assert first == second
    assert len(first.ttfts) == len(TRACE)
    assert min(first.ttfts) > 0
