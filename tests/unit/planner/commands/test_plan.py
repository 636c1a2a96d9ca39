# SPDX-License-Identifier: Apache-2.0
"""`vllm-epd plan` on real files."""

import importlib.util
import json
import sys

import pytest

from vllm_epd.cli import main
from vllm_epd.launch.config import load_launch_config
from vllm_epd.planner.workload.files import write_trace
from vllm_epd.planner.workload.requests import Item, Kind, Request

READY = "internvl2-8b@a100-80gb"
SLO = ["--slo-ttft", "2.4", "--slo-tpot", "0.06"]
SHAPE = ["--images", "2", "--image-size", "1280x720", "--output-tokens", "10"]
GPUS = ["--gpus", "3"]


@pytest.fixture(autouse=True)
def _short(monkeypatch):
    """Runs with few requests, and few fleets to begin with."""
    monkeypatch.setattr("vllm_epd.planner.search.ground.MOST", 70)
    monkeypatch.setattr("vllm_epd.planner.search.planning.STARTS", 2)


@pytest.fixture
def planned(tmp_path, capsys):
    """What a command shows and writes."""

    def plan(*arguments):
        folder = tmp_path / "plan"
        assert main(["plan", "--profile", READY, *arguments, "--trials", "8", "--out", str(folder)]) == 0
        return capsys.readouterr().out, json.loads((folder / "plan.json").read_text()), folder

    return plan


def test_plan_is_shown_written_and_can_be_launched(planned):
    shown, told, folder = planned(*SLO, *SHAPE, *GPUS, "--model", "OpenGVLab/InternVL2-8B")
    assert shown.startswith(told["verdict"]["text"])
    assert (folder / "report.txt").read_text() in shown
    assert (folder / "plan.png").read_bytes().startswith(b"\x89PNG")
    assert told["command"] == f"vllm-epd up --config {folder}/plan.yaml"
    chosen = next(way for way in told["ways"] if way["way"] == told["verdict"]["chosen"])
    config = load_launch_config(folder / "plan.yaml", {})
    assert config.topology == chosen["topology"]
    assert config.model == "OpenGVLab/InternVL2-8B"
    assert chosen["gpus"] == 3


def test_fewest_gpus_for_a_workload_of_a_file(planned, tmp_path):
    file = tmp_path / "traffic.yaml"
    kind = "{images: 2, image_sizes: [1280x720], output_tokens: 10}"
    file.write_text(f"arrivals: {{kind: gamma, rate: 1, cv: 1.5}}\nclasses: [{kind}]\n")
    _, told, _ = planned(*SLO, *GPUS, "--workload", str(file), "--objective", "cost")
    assert told["problem"]["rate"] == 1.0
    chosen = next(way for way in told["ways"] if way["way"] == told["verdict"]["chosen"])
    assert chosen["gpus"] < 3
    assert chosen["attainment"] > 0.8


def test_plan_for_a_trace(planned, tmp_path):
    file = tmp_path / "trace.jsonl"
    items = (Item(Kind.IMAGE, 1280, 720),)
    write_trace([Request(number, number + number % 3 / 4, 100, 10, items) for number in range(40)], file)
    _, told, _ = planned(*SLO, *GPUS, "--workload", str(file))
    assert all(way["goodput"] > 0 for way in told["ways"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([*SLO, *SHAPE, "--gpus", "0"], "a fleet needs at least 1 GPU, got 0"),
        ([*GPUS, *SHAPE, "--slo-ttft", "0", "--slo-tpot", "1"], "targets must be more than 0 s"),
        ([*GPUS, *SHAPE, "--slo-ttft", "0.01", "--slo-tpot", "1"], "a TTFT of 0.01 s cannot be kept for 90%"),
        ([*GPUS, *SHAPE, "--slo-ttft", "3", "--slo-tpot", "1e-5"], "a TPOT of 1e-05 s cannot be kept for 90%"),
        ([*SLO, *GPUS, *SHAPE, "--slo-share", "1.2"], "above 0 and at most 1, got 1.2"),
        ([*SLO, *GPUS, *SHAPE, "--objective", "cost"], "there is no workload; give --workload FILE, or --rate"),
        ([*SLO, *GPUS, *SHAPE, "--objective", "cost", "--rate", "-1"], "command line: "),
        ([*SLO, *GPUS, *SHAPE, "--objective", "cost", "--rate", "1000"], "3 GPUs cannot keep a TTFT of 2.4 s"),
        ([*SLO, *GPUS, *SHAPE, "--memory-share", "0.2"], "the language model's 15."),
        ([*SLO, *GPUS, "--images", "60"], "tokens of context, and a request of the workload has"),
        ([*SLO, *GPUS, *SHAPE, "--time-limit", "0"], "--time-limit: expected more than 0 s, got 0.0"),
        ([*SLO, *GPUS, *SHAPE, "--trials", "0"], "--trials: expected at least 1, got 0"),
        ([*SLO, *GPUS, *SHAPE, "--profile", "nothing"], "unknown profile 'nothing'"),
        ([*SLO, *GPUS, "--workload", "empty.jsonl"], "cannot read empty.jsonl"),
        ([*SLO, *GPUS, *SHAPE, "--out", "/proc/plan"], "--out /proc/plan: "),
    ],
)
def test_mistake_is_named_and_gives_exit_code_2(arguments, message, tmp_path, capsys):
    assert main(["plan", "--profile", READY, "--trials", "2", "--out", str(tmp_path), *arguments]) == 2
    output = capsys.readouterr()
    assert output.err.startswith("vllm-epd: ")
    assert message in output.err


@pytest.mark.parametrize(
    ("content", "message"),
    [("", "has no requests in it"), ('{"at": 1}\n', "trace.jsonl")],
)
def test_trace_without_requests_is_refused(content, message, tmp_path, capsys):
    (tmp_path / "trace.jsonl").write_text(content)
    arguments = ["--profile", READY, *SLO, *GPUS, "--workload", str(tmp_path / "trace.jsonl"), "--out", str(tmp_path)]
    assert main(["plan", *arguments]) == 2
    assert message in capsys.readouterr().err


def test_profile_of_another_version_is_refused(tmp_path, capsys):
    file = tmp_path / "old.json"
    file.write_text(json.dumps({"format": 0}))
    assert main(["plan", "--profile", str(file), *SLO, *GPUS, *SHAPE, "--out", str(tmp_path)]) == 2
    assert "is a profile of format 0, but this version reads format" in capsys.readouterr().err


def test_requests_that_come_at_once_have_no_rate(tmp_path, capsys):
    file = tmp_path / "trace.jsonl"
    write_trace([Request(number, 0.0, 100, 10) for number in range(40)], file)
    arguments = ["--profile", READY, *SLO, *GPUS, "--workload", str(file), "--out", str(tmp_path)]
    assert main(["plan", *arguments]) == 2
    assert "all 40 requests come at the same time" in capsys.readouterr().err


def test_what_is_not_installed_is_named(monkeypatch, capsys, tmp_path):
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "optuna" else found(name))
    assert main(["plan", "--profile", READY, *SLO, *SHAPE, *GPUS, "--out", str(tmp_path)]) == 2
    assert "plan needs optuna; pip install 'vllm-epd[plan]'" in capsys.readouterr().err


def test_simulate_needs_neither_optuna_nor_matplotlib(capsys, monkeypatch):
    for name in [name for name in sys.modules if name.split(".")[0] in ("optuna", "matplotlib")]:
        monkeypatch.delitem(sys.modules, name)  # those who have them already go on with them
    shape = ["--rate", "1", "--images", "1", "--requests", "5"]
    assert main(["simulate", "--profile", READY, "--topology", "EPD", *shape]) == 0
    assert not {"optuna", "matplotlib"} & {name.split(".")[0] for name in sys.modules}
