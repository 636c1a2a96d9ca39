# SPDX-License-Identifier: Apache-2.0
"""What is made of real runs; that they run is seen by running them."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from msgspec.structs import replace

from experiments.reality.compare import compare_all, compare_orders, with_client
from experiments.reality.foreign import Foreign
from experiments.reality.profiling import profile_file, round_profile
from experiments.reality.serving import RunError, read_result, used_between, write_dataset
from vllm_epd.errors import ConfigError
from vllm_epd.planner.profile.store import load_profile, save_profile
from vllm_epd.planner.workload.requests import Item, Kind, Request
from vllm_epd.topology import Topology


def row(topology: str, measured: float, simulated: float, quiet: bool = True) -> dict[str, object]:
    both = {"ttft_measured_s": measured, "ttft_simulated_s": simulated, "tpot_measured_s": 1.0, "tpot_simulated_s": 1.0}
    rounds = {"ttft_rounds_s": {0: measured, 1: measured}, "tpot_rounds_s": {0: 1.0, 1: 1.0}}
    return {"topology": topology, "rate": 2.0, "quiet": quiet, **both, **rounds}


def test_an_order_is_wrong_only_between_topologies_that_differ():
    [ttft, tpot] = compare_orders([row("A", 1.0, 1.3), row("B", 1.04, 1.2), row("C", 1.5, 1.6)])
    assert ttft["measured"] == ["A", "B", "C"]
    assert ttft["simulated"] == ["B", "A", "C"]
    assert ttft["same"]
    assert tpot["same"]
    [ttft, _] = compare_orders([row("A", 1.0, 1.3), row("B", 1.2, 1.2)])
    assert not ttft["same"]
    assert ttft["wrong"] == [("A", "B")]
    [ttft, _] = compare_orders([row("A", 1.0, 1.3), row("B", 1.2, 1.2), row("C", 1.1, 1.0, quiet=False)])
    assert ttft["measured"] == ["A", "B"]


def test_an_order_that_not_every_round_has_is_none():
    one, other = row("A", 1.0, 1.3), row("B", 1.2, 1.2)
    one["ttft_rounds_s"], other["ttft_rounds_s"] = {0: 0.8, 1: 1.2}, {0: 1.25, 1: 1.15}
    [ttft, _] = compare_orders([one, other])
    assert ttft["same"]


def test_one_topology_alone_has_no_order():
    assert compare_orders([row("A", 1.0, 1.3), row("B", 1.2, 1.2, quiet=False)]) == []


def run(number: int, ttft_s: float, foreign_share: float = 0.0, client_s: float = 0.0) -> dict[str, object]:
    sent = [{"at": float(at), "prompt_tokens": 300, "images": [], "ttft_s": ttft_s, "tpot_s": 0.002} for at in range(3)]
    about = {"round": number, "rate": 2.0, "topology": "EPD", "output": 4}
    return {**about, "foreign_share": foreign_share, "client_s": client_s, "requests": sent}


def test_a_row_is_over_the_quiet_rounds_of_a_topology():
    profile = load_profile("qwen2.5-vl-demo@cpu")
    [row] = compare_all([run(0, 0.1), run(1, 0.3), run(2, 9.0, foreign_share=0.5)], dict.fromkeys(range(3), profile))
    assert row["quiet"]
    assert row["runs"] == 2
    assert row["ttft_measured_s"] == pytest.approx(0.2)
    [row] = compare_all([run(0, 0.1, foreign_share=0.5)], {0: profile})
    assert not row["quiet"]


def test_the_profile_of_a_round_is_the_mean_of_those_taken_in_it(tmp_path: Path):
    profile = load_profile("qwen2.5-vl-demo@cpu")
    for rate, base_s in ((1.5, 0.002), (2.5, 0.004)):
        save_profile(replace(profile, decode=replace(profile.decode, base_s=base_s)), profile_file(tmp_path, 1, rate))
    found = round_profile(tmp_path, 1, (1.5, 2.5))
    assert found.decode.base_s == pytest.approx(0.003)
    assert found.hardware == profile.hardware
    with pytest.raises(ConfigError):
        round_profile(tmp_path, 0, (1.5,))


def test_the_client_of_a_row_is_that_of_all_runs():
    profile = load_profile("qwen2.5-vl-demo@cpu")
    [row] = compare_all([run(0, 0.1, client_s=0.01), run(1, 0.1, client_s=0.03)], {0: profile, 1: profile})
    assert row["client_s"] == pytest.approx(0.02)


def test_the_time_of_a_client_is_shared_out_over_the_stages_of_its_requests():
    profile = load_profile("qwen2.5-vl-demo@cpu")
    for topology, stages in (("EPD", 1), ("1E1PD", 2), ("1E1P1D", 3)):
        found = with_client(profile, Topology.parse(topology), 0.06)
        assert found.overhead.beside_s - profile.overhead.beside_s == pytest.approx(0.06 / stages)


BUSY = """
import time
def burn():
    end = time.process_time() + 0.3
    while time.process_time() < end: pass
burn(); print("begun"); burn(); print("over"); burn()
"""


def test_what_a_client_takes_is_told_without_its_start_and_its_end():
    child = subprocess.Popen([sys.executable, "-uc", BUSY], stdout=subprocess.PIPE, text=True)
    assert used_between(child, "begun", "over") == pytest.approx(0.3, abs=0.1)
    assert child.wait() == 0


def test_a_client_that_does_not_come_to_its_end_has_taken_nothing_that_is_known():
    child = subprocess.Popen([sys.executable, "-uc", "print('begun')"], stdout=subprocess.PIPE, text=True)
    assert used_between(child, "begun", "over") is None
    child.wait()


def test_results_of_the_benchmark_are_times_from_the_first_request():
    found = {
        "failed": 0,
        "output_lens": [3, 3],
        "start_times": [10.5, 10.0],
        "input_lens": [20, 30],
        "ttfts": [0.2, 0.3],
        "itls": [[0.01, 0.03], [0.02, 0.02]],
    }
    late, early = read_result(found, 3)
    assert (early.at, late.at) == (0.0, 0.5)
    assert late.prompt_tokens == 20
    assert late.tpot_s == pytest.approx(0.02)


def test_a_run_with_failed_requests_is_none():
    with pytest.raises(RunError, match="1 requests failed"):
        read_result({"failed": 1, "output_lens": [3, 0]}, 3)


def test_a_data_set_has_the_pictures_that_were_asked_for(tmp_path: Path):
    path = tmp_path / "set.jsonl"
    write_dataset(path, [Request(0, 0.0, 90, 4, (Item(Kind.IMAGE, 56, 28), Item(Kind.IMAGE, 56, 28)))], seed=1)
    [line] = [json.loads(text) for text in path.read_text().splitlines()]
    assert len(line["prompt"].split()) == 30
    first, second = line["image_files"]
    assert first != second
    assert first.startswith("data:image/png;base64,")


def test_work_of_this_process_is_not_foreign():
    with Foreign() as foreign:
        sum(number * number for number in range(3_000_000))
    assert foreign.own_s > 0.05
    assert foreign.share <= 1
