# SPDX-License-Identifier: Apache-2.0
"""Processor time of servers on this host, with all their processes, which no server tells of itself.

Where instances share cores, what one does beside a request's way (threads that move bytes or wait for them) slows down
the others.
"""

import os
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from urllib.parse import urlsplit

HERE = ("127.0.0.1", "localhost", "::1")
LISTENING = "0A"
"""State of a socket in the kernel's tables."""

PROC = Path("/proc")
TICKS_PER_S = os.sysconf("SC_CLK_TCK")


class Processes:
    """All processes of servers on this host."""

    def __init__(self, tops: Iterable[int]) -> None:
        """Watch these processes and those that come from them."""
        self._tops = frozenset(tops)

    @classmethod
    def of(cls, urls: Iterable[str]) -> "Processes | None":
        """The processes that listen where these base URLs lead; None if one of them is elsewhere or hidden."""
        ports = [(urlsplit(url).hostname, urlsplit(url).port) for url in urls]
        if not all(host in HERE for host, _ in ports):
            return None
        sockets = _listening()
        wanted = {sockets.get(port) for _, port in ports if port is not None}
        owners = {owner: pid for pid in _pids() for owner in _sockets_of(pid) & wanted}
        return cls(owners.values()) if len(owners) == len(wanted) and None not in wanted else None

    def seconds(self) -> float:
        """What they have used so far, user and system."""
        children: dict[int, list[int]] = {}
        used: dict[int, float] = {}
        for pid in _pids():
            with suppress(OSError, ValueError, IndexError):
                fields = (PROC / str(pid) / "stat").read_text().rpartition(")")[2].split()
                children.setdefault(int(fields[1]), []).append(pid)
                used[pid] = (int(fields[11]) + int(fields[12])) / TICKS_PER_S
        todo, seen = list(self._tops), set[int]()
        while todo:
            pid = todo.pop()
            if pid not in seen:
                seen.add(pid)
                todo += children.get(pid, [])
        return sum(used.get(pid, 0.0) for pid in seen)


def _listening() -> dict[int, str]:
    """Sockets by the ports on which they listen."""
    found = {}
    for name in ("tcp", "tcp6"):
        with suppress(OSError):
            for line in (PROC / "net" / name).read_text().splitlines()[1:]:
                fields = line.split()
                if fields[3] == LISTENING:
                    found[int(fields[1].rpartition(":")[2], 16)] = f"socket:[{fields[9]}]"
    return found


def _pids() -> list[int]:
    return [int(path.name) for path in PROC.iterdir() if path.name.isdigit()]


def _sockets_of(pid: int) -> set[str]:
    found = set()
    with suppress(OSError):
        for path in (PROC / str(pid) / "fd").iterdir():
            with suppress(OSError):
                found.add(str(path.readlink()))
    return found
