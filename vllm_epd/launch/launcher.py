# SPDX-License-Identifier: Apache-2.0
"""One topology on this machine, from start to stop."""

import asyncio
import os
import signal
from collections.abc import Callable, Sequence
from pathlib import Path
from time import monotonic

from rich.console import Console

from vllm_epd.launch.children import Children, ProcessFailedError
from vllm_epd.launch.logs import last_lines
from vllm_epd.launch.probe import open_session
from vllm_epd.launch.progress import Progress
from vllm_epd.launch.startup import ROUTER, Blueprint, Limits, Startup

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Launcher:
    """Starts a topology, watches it, and stops it as a whole; for one use."""

    def __init__(
        self,
        blueprint: Blueprint,
        limits: Limits,
        log_dir: Path,
        console: Console,
        on_ready: Callable[[], None],
    ) -> None:
        """Prepare; nothing is started yet.

        Args:
            blueprint: what is to run.
            limits: how long things may take.
            log_dir: gets one log per process.
            console: for the user.
            on_ready: called when the topology can serve.
        """
        self._blueprint = blueprint
        self._limits = limits
        self._children = Children(log_dir, limits.stop_grace_s)
        self._console = console
        self._on_ready = on_ready
        self._stopping = asyncio.Event()

    async def run(self) -> int:
        """Run until a process fails, or until SIGINT, SIGTERM or SIGHUP, a second of which kills all at once.

        Returns:
            0 after a signal, 1 after a failure; nothing of any process is left in either case.
        """
        loop = asyncio.get_running_loop()
        for number in SIGNALS:
            # nohup asks for a hang-up to be ignored.
            if number is not signal.SIGHUP or signal.getsignal(number) is not signal.SIG_IGN:
                loop.add_signal_handler(number, self._on_signal)
        serving = asyncio.create_task(self._serve())
        told = asyncio.create_task(self._stopping.wait())
        try:
            await asyncio.wait({serving, told}, return_when=asyncio.FIRST_COMPLETED)
            if self._stopping.is_set():
                self._say("stopping; once more kills at once")
                return 0
            self._report(serving.result())
            return 1
        finally:
            await _cancel(serving, told)
            await self._children.stop()

    async def _serve(self) -> ProcessFailedError:
        """Bring everything up and watch it; return what ended that."""
        failures: Sequence[Exception] = ()
        try:
            async with open_session(os.environ) as session, asyncio.TaskGroup() as group:
                with self._progress() as progress:
                    await Startup(self._blueprint, self._limits, self._children, progress, group, session).run()
                self._on_ready()
        except* ProcessFailedError as found:
            failures = found.exceptions
        failure = failures[0]
        assert isinstance(failure, ProcessFailedError)
        return failure

    def _progress(self) -> Progress:
        roles = {spec.name: str(spec.roles) for spec in self._blueprint.instances}
        return Progress(self._console, monotonic, {ROUTER: "", **roles})

    def _on_signal(self) -> None:
        if self._stopping.is_set():
            self._children.kill()
        self._stopping.set()

    def _report(self, failure: ProcessFailedError) -> None:
        log = self._children.log(failure.name)
        self._say(f"{failure}; the end of {log}:")
        for line in last_lines(log):
            self._say(f"  {line}")
        self._say("stopping the others")

    def _say(self, text: str) -> None:
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)


async def _cancel(*tasks: asyncio.Task[object]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
