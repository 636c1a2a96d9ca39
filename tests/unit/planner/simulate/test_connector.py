# SPDX-License-Identifier: Apache-2.0
"""What taking over KV caches adds to the steps of an instance that others prefill for."""

import pytest
from msgspec.structs import replace

from vllm_epd.planner.fleet import Fleet
from vllm_epd.planner.profile.store import load_profile
from vllm_epd.planner.simulate.run import simulate
from vllm_epd.planner.workload.requests import Request
from vllm_epd.topology import Topology

ADDED_S = 0.01


@pytest.mark.parametrize(("topology", "added"), [("1P1D", ADDED_S), ("1PD", 0.0)])
def test_steps_are_longer_only_where_others_prefill(topology: str, added: float):
    profile = load_profile("internvl2-8b@h100")
    slow = replace(profile, overhead=replace(profile.overhead, step_s=ADDED_S))
    fleet, requests = Fleet(Topology.parse(topology)), [Request(0, 0.0, 100, 11)]
    [plain] = simulate(fleet, profile, requests).served
    [found] = simulate(fleet, slow, requests).served
    assert found.tpot_s - plain.tpot_s == pytest.approx(added)
