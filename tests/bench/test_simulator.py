# SPDX-License-Identifier: Apache-2.0
"""How fast fleets of 8 GPUs are simulated near their saturation: `pytest -m bench tests/bench`."""

from time import process_time

import pytest

from vllm_epd.planner.fleet import Fleet, Limits
from vllm_epd.planner.profile.store import load_profile
from vllm_epd.planner.simulate.run import simulate
from vllm_epd.planner.workload.generate import generate
from vllm_epd.planner.workload.spec import Poisson, RequestClass, WorkloadSpec
from vllm_epd.topology import Topology

pytestmark = pytest.mark.bench

TIMES_REAL = 1000
"""Of the time that is simulated."""
FEW, MANY = 1000, 4000
LINEAR = 1.5
"""How much more a request may cost among many than among few; the machine is not the same from moment to moment."""
SIX_LARGE = RequestClass(text_tokens=22, output_tokens=10, images=6, image_sizes=("4032x3024",))
ONE_SMALL = RequestClass(text_tokens=300, output_tokens=200, images=1, image_sizes=("1280x720",))
CASES = {
    # Near saturation: the busiest stage works for 0.7 to 0.9 of the time.
    "six 4K images": ("minicpm-v-2.6@a100-80gb-eager", "6E1P1D", SIX_LARGE, 2.6, True),
    "one small image": ("qwen2.5-vl-7b@h100", "2E2P4D", ONE_SMALL, 30.0, False),
}


@pytest.mark.parametrize(("model", "topology", "kind", "rate", "is_large"), CASES.values(), ids=CASES.keys())
def test_simulated_time_passes_fast(benchmark, model, topology, kind, rate, is_large):
    fleet, profile = Fleet(Topology.parse(topology), Limits(encode_items=2)), load_profile(model)
    seconds = {}
    for count in (FEW, MANY):
        requests = generate(WorkloadSpec(Poisson(rate), (kind,), requests=count))
        begin = process_time()
        outcome = simulate(fleet, profile, requests)
        seconds[count] = (process_time() - begin) / count
    times_real = outcome.end / MANY / seconds[MANY]
    benchmark.extra_info |= {"us_per_request": round(1e6 * seconds[MANY]), "times_real": round(times_real)}
    benchmark.pedantic(simulate, (fleet, profile, requests[:FEW]), rounds=3)
    assert seconds[MANY] < LINEAR * seconds[FEW]
    assert not is_large or times_real > TIMES_REAL
