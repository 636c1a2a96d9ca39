# SPDX-License-Identifier: Apache-2.0
"""One child process under its guard."""

import asyncio
import contextlib
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Self

from vllm_epd.launch import guard
from vllm_epd.launch.guard import ORPHAN_GRACE_S, group_members, signal_all

POLL_S = 0.1
MARGIN_S = 10.0
"""A guard that takes so much longer than it may is itself killed."""


class Child:
    """A command, its descendants and the guard that ends them all; see `guard`.

    The guard's standard input is a pipe whose other end only this process holds: when this process ends, in
    whatever way, so does the command.
    """

    def __init__(self, process: subprocess.Popen[bytes], log: Path, grace_s: float) -> None:
        self._process = process
        self._grace_s = grace_s
        self.log = log

    @classmethod
    def start(cls, command: Sequence[str], log: Path, environment: Mapping[str, str], grace_s: float) -> Self:
        """Start a command in a process group of its own, out of reach of the terminal's Ctrl-C.

        It stays in the session of this process: where Linux shares out processor time by session (`autogroup`), some
        kernels (6.18) leave a session without any for many seconds once several are busy on the same cores.

        Args:
            command: program and arguments.
            log: file to which its output is appended.
            environment: all its variables.
            grace_s: how long it may take to end once it was told to.
        """
        with log.open("ab") as output:
            process = subprocess.Popen(
                [sys.executable, "-I", "-S", guard.__file__, str(grace_s), *command],
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=dict(environment),
                process_group=0,
            )
        return cls(process, log, grace_s)

    @property
    def code(self) -> int | None:
        """Exit code of the command, 128 + signal if one ended it; None while anything of it lives."""
        code = self._process.poll()
        return code if code is None or code >= 0 else 128 - code

    async def wait(self) -> int:
        """Wait until nothing of the command is left; return its exit code."""
        while (code := self.code) is None:
            await asyncio.sleep(POLL_S)
        return code

    async def stop(self) -> None:
        """Tell the command to end, and return when nothing of it is left."""
        self._signal(signal.SIGTERM)
        try:
            async with asyncio.timeout(self._grace_s + ORPHAN_GRACE_S + MARGIN_S):
                await self.wait()
        except TimeoutError:
            self._process.kill()
            await self.wait()
        self._clean_up()

    def kill(self) -> None:
        """End the command and its descendants at once; `stop` or `wait` say when they are gone."""
        self._signal(signal.SIGUSR1)

    def _signal(self, number: signal.Signals) -> None:
        if self._process.poll() is None:
            self._process.send_signal(number)

    def _clean_up(self) -> None:
        """Only a guard that was killed leaves processes, those of its group."""
        if self._process.returncode == -signal.SIGKILL:
            signal_all(group_members(self._process.pid), signal.SIGKILL)
        if self._process.stdin:
            with contextlib.suppress(BrokenPipeError):
                self._process.stdin.close()


def describe_exit(code: int) -> str:
    """`exit code 1`, `killed by SIGSEGV`."""
    if code > 128:
        with contextlib.suppress(ValueError):
            return f"killed by {signal.Signals(code - 128).name}"
    return f"exit code {code}"
