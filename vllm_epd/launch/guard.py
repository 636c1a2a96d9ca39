# SPDX-License-Identifier: Apache-2.0
"""A small program that runs one command and leaves nothing of it behind: `guard.py GRACE COMMAND ...`.

A launcher cannot promise that itself, for it may be killed. The guard adopts every orphan among the command's
descendants (it is their subreaper), so it knows all of them, also those in a session of their own. It ends
them when

- the command has ended by itself;
- SIGTERM, SIGINT or SIGHUP came: SIGTERM to the command, SIGKILL to all that is left after GRACE seconds;
- SIGUSR1 came: SIGKILL to all at once;
- standard input closed, which is how it notices that the launcher died, of whatever: as for SIGTERM.

It is a pipe that tells of the launcher's death, and not PR_SET_PDEATHSIG: that signal comes already when the
*thread* that started the process ends, and not at all when the launcher died before it was asked for. For the
guard's own child neither can happen, and it is told to end in this way should somebody kill the guard.

Run by its path, with `python -I -S`: it needs the standard library alone and starts in some 15 ms.
"""

import contextlib
import ctypes
import math
import os
import select
import signal
import sys
import time
from collections.abc import Iterator
from typing import NamedTuple

PR_SET_PDEATHSIG = 1
PR_SET_CHILD_SUBREAPER = 36

ORPHAN_GRACE_S = 3.0
"""What the command left behind gets SIGTERM, and SIGKILL after so long."""

SWEEP_S = 0.05
TERMINATE = frozenset({signal.SIGTERM, signal.SIGINT, signal.SIGHUP})
HANDLED = TERMINATE | {signal.SIGUSR1, signal.SIGCHLD}


def main(arguments: list[str]) -> int:
    """Run the command, return its exit code (128 + signal if one ended it)."""
    grace_s, command = float(arguments[0]), arguments[1:]
    _prctl(PR_SET_CHILD_SUBREAPER, 1)
    inbox = Inbox()
    return supervise(_start(command), grace_s, inbox)


class Inbox:
    """Signals and the end of standard input, as one thing to wait for."""

    def __init__(self) -> None:
        self.terminate = False
        self.kill = False
        self._read, write = os.pipe()
        for end in (self._read, write):
            os.set_blocking(end, False)
        for number in HANDLED:
            signal.signal(number, lambda *_: None)
        signal.set_wakeup_fd(write, warn_on_full_buffer=False)
        self._sources = [self._read, sys.stdin.fileno()]

    def wait(self, timeout_s: float | None) -> None:
        """Return when something came in, or after `timeout_s`."""
        ready, _, _ = select.select(self._sources, [], [], timeout_s)
        if self._read in ready:
            received = os.read(self._read, 4096)
            self.terminate |= any(number in TERMINATE for number in received)
            self.kill |= signal.SIGUSR1 in received
        if sys.stdin.fileno() in ready and not os.read(sys.stdin.fileno(), 4096):
            self.terminate = True
            self._sources.remove(sys.stdin.fileno())


def supervise(child: int, grace_s: float, inbox: Inbox) -> int:
    """Wait for `child`, or end it when told to; then end what it left behind, and return its exit code."""
    code: int | None = None
    kill_at = math.inf
    orphans_told = child_told = False
    while True:
        ended, childless = _reap()
        code = ended.get(child, code)
        if childless and code is not None:
            return code
        if code is not None and not orphans_told:
            signal_all(descendants(os.getpid()), signal.SIGTERM)
            orphans_told, kill_at = True, min(kill_at, time.monotonic() + ORPHAN_GRACE_S)
        if code is None and inbox.terminate and not child_told:
            signal_all([child], signal.SIGTERM)
            child_told, kill_at = True, time.monotonic() + grace_s
        if inbox.kill or time.monotonic() >= kill_at:
            signal_all(descendants(os.getpid()), signal.SIGKILL)
        inbox.wait(SWEEP_S if inbox.kill or kill_at < math.inf else None)


class Process(NamedTuple):
    """What matters here of /proc/PID/stat."""

    pid: int
    parent: int
    group: int


def descendants(ancestor: int) -> list[int]:
    """Living processes below `ancestor`, the nearest first."""
    children: dict[int, list[int]] = {}
    for process in processes():
        children.setdefault(process.parent, []).append(process.pid)
    found = list(children.get(ancestor, []))
    for pid in found:
        found += children.get(pid, [])
    return found


def group_members(group: int) -> list[int]:
    """Living processes of a process group."""
    return [process.pid for process in processes() if process.group == group]


def processes() -> Iterator[Process]:
    """All processes that live; zombies do not."""
    for name in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(OSError), open(f"/proc/{name}/stat", errors="replace") as file:
            # The command's name, in parentheses, may hold spaces and parentheses itself.
            state, parent, group = file.read().rpartition(")")[2].split()[:3]
            if state not in "ZX":
                yield Process(int(name), int(parent), int(group))


def signal_all(pids: list[int], number: signal.Signals) -> None:
    """Send a signal to those that are still there."""
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)


def _start(command: list[str]) -> int:
    guard = os.getpid()
    # A signal that comes before the child is the command would meet the guard's handler there, and be lost.
    signal.pthread_sigmask(signal.SIG_BLOCK, HANDLED)
    child = os.fork()
    if child:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, HANDLED)
        return child
    try:
        for number in HANDLED:
            signal.signal(number, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, HANDLED)
        _prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != guard:
            os._exit(128 + signal.SIGTERM)
        # The end of the launcher is for the guard alone to see.
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.execvp(command[0], command)
    except OSError as error:
        sys.stderr.write(f"cannot run {command[0]}: {error}\n")
        sys.stderr.flush()
    os._exit(127)


def _reap() -> tuple[dict[int, int], bool]:
    """Collect all that ended, adopted orphans too: their exit codes, and whether no child is left."""
    ended: dict[int, int] = {}
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return ended, True
        if not pid:
            return ended, False
        code = os.waitstatus_to_exitcode(status)
        ended[pid] = code if code >= 0 else 128 - code


def _prctl(option: int, value: int) -> None:
    if ctypes.CDLL(None, use_errno=True).prctl(option, value, 0, 0, 0):
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
