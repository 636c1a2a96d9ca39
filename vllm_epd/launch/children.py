# SPDX-License-Identifier: Apache-2.0
"""The processes of one topology, by name."""

import asyncio
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NoReturn

from vllm_epd.errors import EPDError
from vllm_epd.launch.process import Child, describe_exit


class ProcessFailedError(EPDError):
    """A process of the topology ended, or did not become ready in time."""

    def __init__(self, name: str, reason: str) -> None:
        super().__init__(f"{name}: {reason}")
        self.name = name
        self.reason = reason


class Children:
    """Starts processes, notices when one ends, and stops them together."""

    def __init__(self, log_dir: Path, grace_s: float) -> None:
        self._log_dir = log_dir
        self._grace_s = grace_s
        self._running: dict[str, Child] = {}

    def log(self, name: str) -> Path:
        """Where the output of a process goes."""
        return self._log_dir / f"{name}.log"

    def start(self, name: str, command: Sequence[str], environment: Mapping[str, str]) -> None:
        """Start a process."""
        self._running[name] = Child.start(command, self.log(name), environment, self._grace_s)

    async def watch(self, name: str) -> NoReturn:
        """Wait until a process ends.

        Raises:
            ProcessFailedError: it ended.
        """
        code = await self._running[name].wait()
        raise ProcessFailedError(name, f"ended: {describe_exit(code)}")

    async def stop(self) -> None:
        """Tell all to end, and return when nothing of any is left."""
        await asyncio.gather(*(child.stop() for child in self._running.values()))

    def kill(self) -> None:
        """End all at once; `stop` says when they are gone."""
        for child in self._running.values():
            child.kill()
