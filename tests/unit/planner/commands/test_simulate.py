# SPDX-License-Identifier: Apache-2.0
"""`vllm-epd simulate` on real files."""

import json

import pytest

from vllm_epd.cli import main
from vllm_epd.planner.profile.profile import FORMAT
from vllm_epd.planner.profile.store import encode_profile, load_profile
from vllm_epd.planner.workload.files import write_trace
from vllm_epd.planner.workload.requests import Item, Kind, Request

READY = "internvl2-8b@h100"
SHAPE = ["--rate", "2", "--images", "2", "--image-size", "1280x720", "--output-tokens", "20", "--requests", "50"]
BASE = ["simulate", "--profile", READY, "--topology", "2E1P1D"]


def test_tables_say_how_a_fleet_does(capsys):
    assert main([*BASE, *SHAPE, "--slo-ttft", "5", "--slo-tpot", "0.5"]) == 0
    shown = capsys.readouterr().out
    for part in (
        "2E1P1D of InternVL2-8B on H100",
        "TTFT",
        "TPOT",
        "E0",
        "E1",
        "P0",
        "D0",
        "50 requests served",
        "100.0%",
    ):
        assert part in shown


def test_numbers_for_programs(capsys):
    assert main([*BASE, *SHAPE, "--slo-ttft", "5", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["topology"] == "2E1P1D"
    assert told["served"] == 50
    assert told["attainment"] == 1.0
    assert 0 < told["ttft"]["mean"] <= told["ttft"]["p99"] < 5
    assert [use["name"] for use in told["instances"]] == ["E0", "E1", "P0", "D0"]
    assert all(0 < told["use"][name] < 1 for name in ("E0", "P0", "D0"))
    assert told["instances"][2]["by_stage"].keys() == {"prefill"}


def test_same_seed_same_numbers(capsys):
    outputs = []
    for seed in ("1", "1", "2"):
        main([*BASE, *SHAPE, "--json", "--seed", seed])
        outputs.append(capsys.readouterr().out)
    assert outputs[0] == outputs[1] != outputs[2]


def test_how_a_fleet_is_run_matters(capsys):
    def mean(*more):
        assert main([*BASE, *SHAPE, "--rate", "8", "--json", *more]) == 0
        return json.loads(capsys.readouterr().out)

    assert mean("--decode-sequences", "1")["e2e"]["mean"] > mean()["e2e"]["mean"]
    assert mean("--encode-policy", "round_robin", "--prefill-order", "sjf", "--irp-degree", "1")["served"] == 50


def test_workload_from_yaml_with_another_rate(tmp_path, capsys):
    file = tmp_path / "traffic.yaml"
    file.write_text("requests: 40\narrivals: {kind: poisson, rate: 1}\nclasses: [{images: 1, output_tokens: 5}]\n")
    assert main([*BASE, "--workload", str(file), "--json"]) == 0
    slow = json.loads(capsys.readouterr().out)
    assert main([*BASE, "--workload", str(file), "--rate", "4", "--json"]) == 0
    fast = json.loads(capsys.readouterr().out)
    assert slow["served"] == fast["served"] == 40
    assert fast["requests_per_s"] == pytest.approx(4 * slow["requests_per_s"], rel=0.1)


def test_workload_from_a_trace(tmp_path, capsys):
    file = tmp_path / "trace.jsonl"
    items = (Item(Kind.IMAGE, 640, 480),)
    write_trace([Request(number, number / 2, 100, 10, items) for number in range(20)], file)
    assert main([*BASE, "--workload", str(file), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["served"] == 20


def test_trace_for_a_browser(tmp_path, capsys):
    file = tmp_path / "trace.json"
    assert main([*BASE, *SHAPE, "--trace", str(file)]) == 0
    events = json.loads(file.read_text())["traceEvents"]
    assert {event["args"]["name"] for event in events if event["ph"] == "M"} >= {"E0", "E1", "P0", "D0"}


@pytest.fixture
def files(tmp_path):
    old = load_profile(READY)
    (tmp_path / "old.json").write_bytes(encode_profile(old).replace(b'"format": %d' % FORMAT, b'"format": 99'))
    (tmp_path / "broken.json").write_text("{")
    (tmp_path / "empty.jsonl").write_text("")
    (tmp_path / "odd.yaml").write_text("arrivals: {kind: poisson, rate: -3}\n")
    (tmp_path / "some.yaml").write_text("arrivals: {kind: poisson, rate: 3}\nclasses: [{images: 1}]\n")
    return tmp_path


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--profile", "gpt-9@h100", *SHAPE], "unknown profile 'gpt-9@h100': neither a file nor one of the ready ones"),
        (["--profile", "DIR/old.json", *SHAPE], "is a profile of format 99, but this version reads format"),
        (["--profile", "DIR/broken.json", *SHAPE], "holds no profile"),
        (["--workload", "DIR/empty.jsonl"], "empty.jsonl has no requests in it"),
        (["--workload", "DIR/none.jsonl"], "cannot read"),
        (["--workload", "DIR/odd.yaml"], "odd.yaml: "),
        (["--workload", "DIR/some.yaml", "--images", "2"], "--images says what is in a request, and"),
        (["--rate", "-1", "--images", "1"], "command line: "),
        (["--rate", "0"], "command line: "),
        (["--workload", "DIR/some.yaml", "--rate", "-2"], "-2"),
        (["--rate", "1", "--image-size", "big"], "command line: "),
        (["--rate", "1", "--requests", "0"], "command line: expected at least 1 request, got 0"),
        (["--rate", "1", "--output-tokens", "-5"], "command line: "),
        (["--images", "1"], "there is no workload; give --workload FILE, or --rate"),
        ([*SHAPE, "--slo-ttft", "-1"], "targets must be more than 0 s, got TTFT -1.0 s"),
        ([*SHAPE, "--topology", "2E1X"], "'X' is none of the letters"),
        ([*SHAPE, "--topology", "1P1D"], "the fleet serves none of 50 requests: it has media, and no instance encodes"),
        ([*SHAPE, "--irp-degree", "many"], "--irp-degree: expected auto or an integer of at least 1, got 'many'"),
        ([*SHAPE, "--encode-items", "0"], "--encode-items: expected at least 1, got 0"),
        ([*SHAPE, "--tier", "pigeons"], "--tier pigeons: the profile of InternVL2-8B has the links"),
        ([*SHAPE, "--memory-share", "1.5"], "--memory-share: expected a part above 0 and at most 1, got 1.5"),
        ([*SHAPE, "--memory-share", "0.1"], "does not fit"),
        ([*SHAPE, "--trace", "DIR/no/where.json"], "cannot write"),
        ([*SHAPE, "--", "more"], "simulate takes no arguments after --"),
    ],
)
def test_mistake_is_named_and_gives_exit_code_2(arguments, message, files, capsys):
    given = [each.replace("DIR", str(files)) for each in arguments]
    assert main([*BASE, *given]) == 2
    output = capsys.readouterr()
    assert output.err.startswith("vllm-epd: ")
    assert message in output.err
    assert output.out == ""
