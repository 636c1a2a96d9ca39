# SPDX-License-Identifier: Apache-2.0
"""How much processor time a server has used, with all its processes."""

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass

import psutil
from yarl import URL

from tests.bench.errors import BenchError


def servers(urls: Mapping[str, str]) -> dict[str, psutil.Process]:
    """The process at the top of each server, found by the port on which it listens."""
    listening = [each for each in psutil.net_connections("tcp") if each.status == psutil.CONN_LISTEN]
    return {
        name: _top({each.pid for each in listening if each.laddr.port == URL(url).port}, url)
        for name, url in urls.items()
    }


@dataclass(frozen=True, slots=True)
class Used:
    """Seconds of processor time, user and system, that one server has used.

    Attributes:
        all: by all its processes.
        front: by its API server alone, which fetches, decodes and preprocesses media.
    """

    all: float
    front: float

    def per_request(self, before: "Used", requests: int) -> "Used":
        """What was used since `before`, for each of so many requests."""
        return Used((self.all - before.all) / requests, (self.front - before.front) / requests)


def used(tops: Mapping[str, psutil.Process]) -> dict[str, Used]:
    """What each server has used so far."""
    return {name: _used(top) for name, top in tops.items()}


def _top(pids: set[int | None], url: str) -> psutil.Process:
    for pid in pids - {None}:
        process = psutil.Process(pid)
        if process.ppid() not in pids:
            return process
    raise BenchError(f"nobody listens at {url}")


def _used(top: psutil.Process) -> Used:
    seconds = []
    for process in (top, *top.children(recursive=True)):
        with contextlib.suppress(psutil.NoSuchProcess):
            times = process.cpu_times()
            seconds.append(times.user + times.system + times.children_user + times.children_system)
    return Used(sum(seconds), seconds[0])
