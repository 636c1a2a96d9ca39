# SPDX-License-Identifier: Apache-2.0
"""A launcher in a process of its own, over stub programs: whatever happens, it says why and leaves nothing behind."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.unit.launch.conftest import PATIENCE_S, wait_until

ROOT = Path(__file__).parents[3]
DRIVER = Path(__file__).parent / "programs" / "driver.py"


class Run:
    """One launcher process and what it writes."""

    def __init__(self, process, output):
        self.process = process
        self._output = output

    @property
    def output(self):
        return self._output.read_text()

    def until(self, text):
        wait_until(lambda: text in self.output or self.process.poll() is not None)
        assert text in self.output

    def send(self, number):
        self.process.send_signal(number)

    def code(self):
        return self.process.wait(PATIENCE_S)


@pytest.fixture
def launch(tmp_path, marked):
    def launch(topology="1E1P1D", behaviour=None, *, startup_s=PATIENCE_S, grace_s=10 * PATIENCE_S, parallel=8, **more):
        given = {"topology": topology, "behaviour": behaviour or {}, "log_dir": str(tmp_path)}
        given |= {"startup_s": startup_s, "grace_s": grace_s, "parallel": parallel, **more}
        environment = marked.environment | {"PYTHONPATH": str(ROOT), "STARTS": str(tmp_path)}
        output = tmp_path / "output"
        with output.open("w") as file:
            command = [sys.executable, str(DRIVER), json.dumps(given)]
            process = subprocess.Popen(command, env=environment, stdout=file, stderr=file)
        return Run(process, output)

    return launch


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_topology_runs_until_a_signal(launch, marked, number):
    run = launch(behaviour={"P0": ["forks"]}, grace_s=1.0)
    run.until("READY")
    assert len(marked.find("instance.py")) == 6, "each instance and its guard"
    run.send(number)
    assert run.code() == 0
    assert marked.pids() == []
    for name in ("router", "E0", "P0", "D0"):
        assert f"{name} (" in run.output
    assert "E0 (encode): ready after" in run.output


def test_killed_launcher_takes_all_with_it(launch, marked):
    run = launch("1E1PD", {"E0": ["forks", "stubborn"]}, grace_s=0.5)
    run.until("READY")
    run.send(signal.SIGKILL)
    run.code()
    marked.wait_until_gone()


def test_launcher_killed_while_it_starts_takes_all_with_it(launch, marked):
    run = launch("1PD", {"PD0": ["forks", "mute"]})
    marked.wait_for("instance.py")
    run.send(signal.SIGKILL)
    run.code()
    marked.wait_until_gone()


def test_signal_while_starting_stops_all(launch, marked):
    run = launch(behaviour={"D0": ["mute"]})
    run.until("E0 (encode): ready")
    run.send(signal.SIGINT)
    assert run.code() == 0
    assert "READY" not in run.output
    assert marked.pids() == []


def test_second_signal_kills_at_once(launch, marked):
    run = launch("1PD", {"PD0": ["stubborn", "forks"]})
    run.until("READY")
    run.send(signal.SIGTERM)
    run.until("stopping")
    time.sleep(0.5)
    assert run.process.poll() is None
    run.send(signal.SIGTERM)
    assert run.code() == 0
    assert marked.pids() == []


def test_instance_that_dies_at_start_is_named_with_the_end_of_its_log(launch, marked, tmp_path):
    run = launch(behaviour={"P0": ["dies"], "E0": ["stubborn"]}, grace_s=0.5)
    assert run.code() == 1
    assert f"P0: ended: exit code 3; the end of {tmp_path}/P0.log:" in run.output
    assert [f"line {number}" in run.output for number in (9, 10, 29)] == [False, True, True]
    assert "READY" not in run.output
    assert marked.pids() == []


def test_instance_that_dies_later_is_named(launch, marked):
    run = launch(behaviour={"D0": ["crashes", "forks"]}, grace_s=0.5)
    assert run.code() == 1
    assert "D0: ended: killed by SIGSEGV" in run.output
    assert "about to crash" in run.output
    assert marked.pids() == []


def test_router_that_dies_is_named(launch, marked):
    run = launch("1PD")
    run.until("READY")
    for pid in marked.find("programs/router.py"):
        if pid not in marked.find("guard.py"):
            subprocess.run(["kill", "-9", str(pid)], check=True)
    assert run.code() == 1
    assert "router: ended: killed by SIGKILL" in run.output
    assert marked.pids() == []


def test_instance_that_is_not_ready_in_time_is_named(launch, marked):
    run = launch("1PD", {"PD0": ["mute", "forks"]}, startup_s=5.0, grace_s=0.5)
    assert run.code() == 1
    assert "PD0: not ready after 5 s: it does not answer" in run.output
    assert marked.pids() == []


def test_instances_that_do_not_fit_each_other_end_the_start(launch, marked):
    run = launch(objection=["two fingerprints"])
    assert run.code() == 1
    assert "router: all instances are registered, but: two fingerprints" in run.output
    assert marked.pids() == []


def test_router_of_a_text_only_topology_may_object(launch):
    run = launch("1P1D", objection=["no encode instance"])
    run.until("READY")
    run.send(signal.SIGTERM)
    assert run.code() == 0


def test_no_more_instances_start_at_once_than_wished(launch, tmp_path):
    names = [f"PD{number}" for number in range(4)]
    run = launch("4PD", dict.fromkeys(names, ["counts"]), parallel=2)
    run.until("READY")
    run.send(signal.SIGTERM)
    assert run.code() == 0
    counts = [int(line) for line in (tmp_path / "counts").read_text().split()]
    assert len(counts) == 4
    assert max(counts) == 2
