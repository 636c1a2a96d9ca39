# SPDX-License-Identifier: Apache-2.0
"""The command line: what it says to mistakes, what importing it costs, and whole topologies of stand-ins for vLLM."""

import json
import shutil
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest

from vllm_epd import __version__
from vllm_epd.cli import main

ROOT = Path(__file__).parents[2]
STAND_IN = Path(__file__).parent / "launch/programs/vllm_main.py"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["up", "m", "--topology", "1E1X"], "topology '1E1X', position 4: 'X' is none of the letters"),
        (["up", "m", "--topology", "2E"], "it has no prefill and no decode instance"),
        (["up", "--demo", "gpt-2", "--gpus", "none", "--port", "0"], "unknown demo model family 'gpt-2'"),
        (["up", "m", "--demo", "qwen2.5-vl"], "model m and demo qwen2.5-vl exclude each other"),
        (["up", "m", "--config", "/none.yaml"], "cannot read /none.yaml"),
        (["up", "m", "--port", "0", "--", "--port", "1"], "--port is given to each instance by the launcher"),
        (["up", "m", "--gpus", "x"], "gpus: expected auto, none or a list of numbers, got 'x'"),
        (["up", "m", "--gpus", "0", "--port", "0"], "this topology needs 3 GPUs (E0 1, P0 1, D0 1), and there are 1"),
        (["route", "--ttl", "-1"], "heartbeat_s must be positive"),
        (["route", "--max-queue", "0"], "max_queue must be at least 1, got 0"),
        (["route", "--ttft-slo", "0"], "ttft_slo_s must be positive, got 0.0"),
        (["route", "--", "x"], "route takes no arguments after --"),
    ],
)
def test_mistake_is_named_and_gives_exit_code_2(arguments, message, capsys):
    assert main(arguments) == 2
    output = capsys.readouterr()
    assert output.err.startswith("vllm-epd: ")
    assert message in output.err
    assert output.out == ""


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["down"],
        ["up", "a", "b"],
        ["up", "--port", "x"],
        ["route", "--policy", "x"],
        ["route", "--encode-order", "x"],
    ],
)
def test_wrong_usage_is_left_to_argparse(arguments, capsys):
    with pytest.raises(SystemExit) as end:
        main(arguments)
    assert end.value.code == 2
    assert "usage: vllm-epd" in capsys.readouterr().err


def test_version(capsys):
    with pytest.raises(SystemExit) as end:
        main(["--version"])
    assert end.value.code == 0
    assert capsys.readouterr().out == f"vllm-epd {__version__}\n"


@pytest.mark.parametrize(("command", "text"), [("up", "2EP1D is two instances"), ("route", "--policy")])
def test_help(command, text, capsys):
    with pytest.raises(SystemExit) as end:
        main([command, "--help"])
    assert end.value.code == 0
    assert text in capsys.readouterr().out


def test_importing_loads_nothing_heavy():
    heavy = ("torch", "vllm", "numpy", "aiohttp", "omegaconf", "rich")
    code = f"import sys, vllm_epd.cli as c; c.build_parser(); print([m for m in {heavy} if m in sys.modules])"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert shown.stdout.strip() == "[]"


@pytest.fixture
def up(tmp_path):
    """Run `vllm-epd up` where the package `vllm` is a stand-in."""
    folder = tmp_path / "vllm/entrypoints/cli"
    folder.mkdir(parents=True)
    for package in (folder, *list(folder.parents)[:2]):
        (package / "__init__.py").touch()
    shutil.copy(STAND_IN, folder / "main.py")
    started = []

    def up(*arguments):
        environment = {"PYTHONPATH": f"{tmp_path}:{ROOT}", "PATH": "", "HOME": str(tmp_path)}
        command = [sys.executable, "-m", "vllm_epd.cli", "up", *arguments]
        started.append(subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True, cwd=tmp_path))
        return started[-1]

    yield up
    for process in started:
        process.kill()
        process.communicate()


def until_ready(process):
    lines = []
    for line in process.stdout:
        lines.append(line)
        if line.startswith("ready: "):
            return lines, line.split()[1]
    raise AssertionError("".join(lines))


def test_topology_comes_up_behind_a_router_and_goes(up, tmp_path):
    file = tmp_path / "topology.yaml"
    file.write_text("model: other\nroles: {E: [--max-num-seqs, 4]}\ntopology: 1PD\n")
    arguments = ("--config", str(file), "--topology", "2E1PD", "--port", "0", "--log-dir", str(tmp_path / "logs"))
    process = up("org/model", *arguments, "--", "--seed", "7")
    lines, url = until_ready(process)
    assert lines[0] == f"2E1PD of org/model, logs in {tmp_path}/logs\n"
    assert lines[-1] == f"ready: {url} (2E1PD, org/model)\n"
    with urllib.request.urlopen(f"{url}/ready", timeout=30) as response:
        assert json.load(response)["stages"] == {"encode": 2, "prefill": 1, "decode": 1}
    process.send_signal(signal.SIGINT)
    # Not `communicate`, which would miss what has been read ahead with the line that says ready.
    output = process.stdout.read()
    assert process.wait(60) == 0
    assert f"curl {url}/v1/chat/completions" in output
    assert (tmp_path / "logs/E1.log").read_text() == "given: --max-num-seqs 4 --seed 7\n"
    assert (tmp_path / "logs/PD0.log").read_text() == "given: --seed 7\n"


def test_instance_that_fails_is_shown_and_gives_exit_code_1(up):
    process = up("model", "--port", "0", "--topology", "EPD", "--", "--help")
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "EPD0: ended: exit code 0" in output
    assert "usage:" in output
    assert ".local/state/vllm_epd/" in output
