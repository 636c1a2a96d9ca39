# SPDX-License-Identifier: Apache-2.0
"""What holds for every fleet and workload, and for queues whose answer is known."""

from collections import Counter
from math import sqrt
from statistics import mean, stdev

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.planner.simulate.conftest import PROFILE, TILE_S, TOKEN_S
from vllm_epd.planner.fleet import Fleet, Limits
from vllm_epd.planner.simulate.run import simulate
from vllm_epd.planner.workload.generate import generate
from vllm_epd.planner.workload.requests import Request
from vllm_epd.planner.workload.spec import Choices, Poisson, RequestClass, Reuse, Uniform, WorkloadSpec
from vllm_epd.router.ordering import ORDERS
from vllm_epd.router.policies import POLICIES
from vllm_epd.topology import Topology
from vllm_epd.types import Role

MIXED = RequestClass(
    text_tokens=Uniform(1, 900),
    output_tokens=Uniform(1, 40),
    images=Choices((0.0, 1.0, 5.0)),
    image_sizes=("448x448", "896x896"),
)
TOPOLOGIES = st.sampled_from(["EPD", "3EPD", "1E1PD", "2E1P1D", "1E2P2D", "2EP1D", "1ED1P", "1E1EP1P1D", "1EPD1E1PD"])
FLEETS = st.builds(
    Fleet,
    topology=TOPOLOGIES.map(Topology.parse),
    limits=st.builds(
        Limits,
        encode_items=st.integers(1, 4),
        prefill_sequences=st.integers(1, 4),
        decode_sequences=st.integers(1, 6),
        batched_tokens=st.sampled_from([64, 1000]),
    ),
    policies=st.fixed_dictionaries({role: st.sampled_from(sorted(POLICIES)) for role in Role}),
    orders=st.fixed_dictionaries({role: st.sampled_from(sorted(ORDERS)) for role in Role}),
    spread=st.booleans(),
    irp_degree=st.sampled_from([None, 1, 3]),
    tier=st.just("link"),
    memory_share=st.sampled_from([0.006, 0.01, 0.9]),
    kv_share=st.sampled_from([0.3, 0.7]),
    workers_preprocess=st.booleans(),
    chunked=st.booleans(),
    pulls=st.booleans(),
)


@given(fleet=FLEETS, rate=st.floats(0.05, 20), seed=st.integers(0, 99))
def test_every_request_is_served_once_or_refused_and_memory_is_never_above_capacity(fleet, rate, seed):
    spec = WorkloadSpec(Poisson(rate), (MIXED,), requests=25, reuse=Reuse(0.3, pool=3), seed=seed)
    requests = generate(spec)
    outcome = simulate(fleet, PROFILE, requests, ttft_slo_s=5.0)
    ended = Counter(each.number for each in (*outcome.served, *outcome.refused))
    assert ended == Counter(range(25))
    for each in outcome.served:
        request = requests[each.number]
        assert each.arrived == request.at < each.first_token <= each.done <= outcome.end
        assert each.output_tokens == request.output_tokens
        assert (each.first_token == each.done) == (request.output_tokens == 1)
        assert "P" in each.prefill
        # What has a single token needs no decoder; where D is chosen with P, it is kept a place all the same.
        assert "D" in each.decode or (fleet.pulls and request.output_tokens == 1)
        assert each.encoder is None or "E" in each.encoder
    for use in outcome.uses:
        assert use.peak_kv_tokens <= use.kv_tokens
        assert use.peak_embedding_tokens <= use.embedding_tokens
        assert use.busy_s <= outcome.end + 1e-6
        assert use.busy_s == pytest.approx(sum(use.by_stage.values()))
    assert outcome == simulate(fleet, PROFILE, requests, ttft_slo_s=5.0)


@given(fleet=FLEETS, seed=st.integers(0, 99))
def test_devices_work_for_as_long_as_the_requests_need(fleet, seed):
    """Utilisation law: busy time is what all requests together ask for, whatever the schedule; here of encode."""
    requests = generate(WorkloadSpec(Poisson(1.0), (MIXED,), requests=15, seed=seed))
    outcome = simulate(fleet, PROFILE, requests)
    served = {each.number for each in outcome.served}
    tiles = sum(item.width * item.height // 448**2 for each in requests if each.number in served for item in each.items)
    assert sum(use.by_stage.get("encode", 0.0) for use in outcome.uses) == pytest.approx(tiles * TILE_S)


@given(fleet=FLEETS, rate=st.floats(0.1, 10))
def test_littles_law(fleet, rate):
    """The mean number of requests in the fleet is their rate times their mean time in it."""
    outcome = simulate(fleet, PROFILE, generate(WorkloadSpec(Poisson(rate), (MIXED,), requests=30)))
    changes = sorted([(each.arrived, 1) for each in outcome.served] + [(each.done, -1) for each in outcome.served])
    inside = area = last = 0.0
    for at, change in changes:
        area += inside * (at - last)
        inside, last = inside + change, at
    count = len(outcome.served)
    throughput, residence = count / outcome.end, mean(each.done - each.arrived for each in outcome.served or [])
    assert area / outcome.end == pytest.approx(throughput * residence)


ONE_BY_ONE = Limits(encode_items=1, prefill_sequences=1, decode_sequences=1, batched_tokens=10**6)


@given(
    topology=st.sampled_from(["EPD", "1E1PD", "1EP1D", "1E1P1D"]),
    rates=st.tuples(st.floats(0.01, 2), st.floats(0.01, 2)),
    seed=st.integers(0, 99),
)
def test_more_load_makes_no_request_faster(topology, rates, seed):
    """Of queues in which each thing is done by itself and in turn; with batches a request may gain from company."""
    kinds = (RequestClass(text_tokens=Uniform(1, 900), output_tokens=Uniform(1, 40), images=Uniform(0, 2)),)
    spec = WorkloadSpec(Poisson(1.0), kinds, requests=30, seed=seed)
    fleet = Fleet(Topology.parse(topology), ONE_BY_ONE, tier="none")
    slow, fast = (simulate(fleet, PROFILE, generate(spec.at_rate(rate))).served for rate in sorted(rates))
    assert mean(each.ttft_s for each in slow) <= mean(each.ttft_s for each in fast) + 1e-6


RHO = 0.7
COUNT = 4000
RUNS = 12
WARM_UP = 500
BOUND = 4.5
"""Standard errors of the mean of runs, by which they may miss what is known: one in a hundred thousand does."""


def waits(service):
    """Mean time in a queue with Poisson arrivals of each run, in mean service times; `service` draws these."""
    fleet = Fleet(Topology.parse("PD"), Limits(prefill_sequences=1, batched_tokens=10**9), tier="none", chunked=False)
    means = []
    for seed in range(RUNS):
        random = np.random.default_rng(seed)
        tokens = np.maximum(1, np.round(service(random))).astype(int)
        times = np.cumsum(random.exponential(1000 * TOKEN_S / RHO, COUNT))
        requests = [Request(n, float(at), int(text), 1) for n, (at, text) in enumerate(zip(times, tokens, strict=True))]
        served = simulate(fleet, PROFILE, requests).served[WARM_UP:]
        means.append(mean(each.ttft_s for each in served) / (1000 * TOKEN_S))
    return means


QUEUES = {
    # Time in the system, in mean service times: 1 / (1 - rho) for M/M/1, 1 + rho / (2 (1 - rho)) for M/D/1.
    "M/M/1": (lambda random: random.exponential(1000, COUNT), 1 / (1 - RHO)),
    "M/D/1": (lambda random: np.full(COUNT, 1000), 1 + RHO / (2 * (1 - RHO))),
}


@pytest.mark.parametrize(("service", "known"), QUEUES.values(), ids=QUEUES.keys())
def test_queues_whose_answer_is_known(service, known):
    found = waits(service)
    assert abs(mean(found) - known) <= BOUND * stdev(found) / sqrt(RUNS)
    assert stdev(found) / sqrt(RUNS) < 0.1 * known
