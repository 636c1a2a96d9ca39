# SPDX-License-Identifier: Apache-2.0
"""Processes that carry a mark in their environment, by which what is left of them is found."""

import os
import time
import uuid
from pathlib import Path

import pytest

MARK = "EPD_TEST_MARK"
PATIENCE_S = 60.0


class Marked:
    """All living processes that were started with `environment`, and their descendants."""

    def __init__(self):
        self._entry = f"{MARK}={uuid.uuid4().hex}"
        self.environment = os.environ | dict([self._entry.split("=")])

    def pids(self):
        return [int(folder.name) for folder in Path("/proc").iterdir() if folder.name.isdigit() and self._has(folder)]

    def wait_until_gone(self):
        wait_until(lambda: not self.pids(), lambda: f"left: {[_command(pid) for pid in self.pids()]}")

    def wait_for(self, text):
        """The process with this text in its command line."""
        wait_until(lambda: self.find(text), lambda: f"no {text} among {[_command(pid) for pid in self.pids()]}")
        return self.find(text)[0]

    def find(self, text):
        return [pid for pid in self.pids() if text in _command(pid)]

    def _has(self, folder):
        try:
            return self._entry.encode() in (folder / "environ").read_bytes().split(b"\0")
        except OSError:
            return False


def _command(pid):
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
    except OSError:
        return ""


def wait_until(condition, explain=lambda: "waited in vain"):
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline, explain()
        time.sleep(0.05)


@pytest.fixture
def marked():
    """Fails the test that leaves a process behind, and ends it."""
    processes = Marked()
    yield processes
    left = processes.pids()
    shown = [_command(pid) for pid in left]
    for pid in left:
        os.kill(pid, 9)
    assert shown == []
