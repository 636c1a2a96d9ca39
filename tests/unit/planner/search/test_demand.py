# SPDX-License-Identifier: Apache-2.0
import pytest

from vllm_epd.planner.fleet import Fleet, Limits
from vllm_epd.planner.profile.store import load_profile
from vllm_epd.planner.search.demand import (
    capacity,
    least_tpot_s,
    least_ttft_s,
    proportional,
    sizes,
    stage_seconds,
)
from vllm_epd.planner.search.families import families, name
from vllm_epd.planner.simulate.run import simulate
from vllm_epd.planner.workload.requests import Item, Kind, Request
from vllm_epd.topology import Topology
from vllm_epd.types import Role

SECONDS = {Role.ENCODE: 1.0, Role.PREFILL: 0.5, Role.DECODE: 0.5}
PROFILE = load_profile("internvl2-8b@a100-80gb")
IMAGES = tuple(Item(Kind.IMAGE, 2000, 1500) for _ in range(3))


@pytest.mark.parametrize(
    ("text", "rate"),
    [
        ("2EPD", 1.0),
        ("2E1P1D", 2.0),
        ("1E1P1D", 1.0),
        ("1E1PD", 1.0),
        ("4EP1D", 2.0),
        ("1E3PD", 1.0),
        ("1E3EPD", 2.0),
        ("1EP3D", 2 / 3),
    ],
)
def test_capacity_is_that_of_the_busiest_stages(text, rate):
    assert capacity(SECONDS, Topology.parse(text)) == pytest.approx(rate)


def test_stages_without_work_bound_nothing():
    assert capacity({**SECONDS, Role.ENCODE: 0.0}, Topology.parse("1P1D")) == 2.0


def test_instances_are_in_proportion_to_the_work():
    family = next(family for family in families(media=True) if name(family) == "E+P+D")
    assert str(proportional(family, 8, SECONDS)) == "4E2P2D"


@pytest.mark.parametrize("topology", ["8EPD", "7EP1D", "4E2P2D"])
def test_no_fleet_serves_more_than_its_capacity(topology):
    requests = [Request(number, 0.0, 50, 40, IMAGES) for number in range(400)]
    fleet = Fleet(Topology.parse(topology), Limits(encode_items=4))
    seconds = stage_seconds(PROFILE, [sizes(PROFILE, requests[0])], fleet.limits, 1.0)
    outcome = simulate(fleet, PROFILE, requests)
    served = len(requests) / outcome.end
    assert 0.2 * capacity(seconds, fleet.topology) < served < 1.05 * capacity(seconds, fleet.topology)


@pytest.mark.parametrize("topology", ["EPD", "4E1P1D", "3EP1D"])
def test_no_fleet_is_faster_than_what_is_least(topology):
    request = Request(0, 0.0, 50, 40, IMAGES)
    (served,) = simulate(Fleet(Topology.parse(topology)), PROFILE, [request]).served
    size = sizes(PROFILE, request)
    assert 0 < least_ttft_s(PROFILE, size, 8) <= served.ttft_s
    assert 0 < least_tpot_s(PROFILE, size) <= served.tpot_s


def test_sizes_of_a_request():
    size = sizes(PROFILE, Request(0, 0.0, 50, 40, IMAGES))
    assert size.prompt == 50 + size.embeddings
    assert size.context == size.prompt + 40
    assert len(size.media) == 3
