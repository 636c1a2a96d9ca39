# SPDX-License-Identifier: Apache-2.0
"""What is made of an outcome."""

import json

import pytest

from vllm_epd.errors import ConfigError
from vllm_epd.planner.fleet import Fleet
from vllm_epd.planner.simulate.chrome import ChromeTrace
from vllm_epd.planner.simulate.metrics import Spread, summarize
from vllm_epd.planner.simulate.outcome import Outcome, Refused, Served, Use
from vllm_epd.planner.simulate.run import simulate
from vllm_epd.planner.workload.requests import Item, Kind, Request
from vllm_epd.topology import Topology


def served(number, arrived, first_token, done, tokens):
    return Served(number, arrived, first_token, done, tokens, None, "P0", "D0")


def test_an_outcome_in_numbers():
    uses = [Use(name, busy, {}, 0, 0, 0, 0) for name, busy in (("P0", 4.0), ("D0", 8.0))]
    requests = [served(0, 2.0, 3.0, 7.0, 5), served(1, 4.0, 7.0, 7.0, 1), served(2, 5.0, 6.0, 12.0, 4)]
    found = summarize(Outcome(requests, [Refused(3, "too long")], uses, 12.0))
    assert (found.served, found.refused) == (3, 1)
    assert found.ttft == Spread(mean=5 / 3, p50=1.0, p90=3.0, p99=3.0)
    assert found.tpot == Spread(mean=1.5, p50=1.0, p90=2.0, p99=2.0)
    assert found.e2e.mean == pytest.approx(5.0)
    assert (found.requests_per_s, found.tokens_per_s) == (0.3, 1.0)
    assert found.device_s == pytest.approx(2 * 10.0 / 3)
    assert found.use == {"P0": 0.4, "D0": 0.8}


@pytest.mark.parametrize(("count", "ranks"), [(1, (1, 1, 1)), (10, (5, 9, 10)), (100, (50, 90, 99))])
def test_percentiles_are_times_of_requests(count, ranks):
    found = Spread.of([float(each) for each in range(count, 0, -1)])
    assert (found.p50, found.p90, found.p99) == ranks


@pytest.mark.parametrize(
    ("refused", "why"), [([], "there are no requests"), ([Refused(0, "it is too long")], "it is too long")]
)
def test_a_fleet_that_serves_nothing_has_no_numbers(refused, why):
    with pytest.raises(ConfigError, match=why):
        summarize(Outcome([], refused, [], 0.0))


def test_a_trace_shows_what_each_instance_did(profile, tmp_path):
    trace = ChromeTrace()
    requests = [Request(0, 1.0, 100, 3, (Item(Kind.IMAGE, 448, 448),))]
    outcome = simulate(Fleet(Topology.parse("1E1P1D"), tier="none"), profile(), requests, trace=trace)
    trace.write(tmp_path / "trace.json")
    events = json.loads((tmp_path / "trace.json").read_text())["traceEvents"]
    names = {each["pid"]: each["args"]["name"] for each in events if each["name"] == "process_name"}
    threads = {(each["pid"], each["tid"]): each["args"]["name"] for each in events if each["name"] == "thread_name"}
    spans = [(names[each["pid"]], each["name"], each["ts"], each["dur"]) for each in events if each["ph"] == "X"]
    assert [(who, what) for who, what, _, _ in spans] == [
        ("E0", "preprocess"),
        ("E0", "encode"),
        ("P0", "transfer"),
        ("P0", "prefill"),
        ("D0", "transfer"),
        ("D0", "decode"),
    ]
    assert all(threads[each["pid"], each["tid"]] == each["name"] for each in events if each["ph"] == "X")
    assert spans[:2] == [
        ("E0", "preprocess", 1e6, pytest.approx(0.25e6)),
        ("E0", "encode", pytest.approx(1.25e6), pytest.approx(1e6)),
    ]
    worked = sum(length for _, what, _, length in spans if what in ("encode", "prefill", "decode"))
    assert worked == pytest.approx(1e6 * sum(use.busy_s for use in outcome.uses))
