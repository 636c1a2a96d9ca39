# SPDX-License-Identifier: Apache-2.0
"""Starting the processes of a system, and leaving none behind."""

import asyncio
import os
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.bench.cases import MODEL
from tests.bench.errors import BenchError
from vllm_epd.launch.logs import last_lines
from vllm_epd.launch.process import Child, describe_exit

HOST = "127.0.0.1"
START_LIMIT_S = 600.0
STOP_GRACE_S = 60.0
POLL_S = 0.5
PYTHON = (sys.executable, "-P", "-m")

SERVE_ARGUMENTS = ("--enforce-eager", "--max-model-len", "4096", "--served-model-name", MODEL)
"""For every `vllm serve` of every system."""

ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    "OMP_NUM_THREADS": "1",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_NO_USAGE_STATS": "1",
}
"""For every process of every system."""

STOCK = {"VLLM_PLUGINS": ""}
"""Keeps this package out of the vLLM that it is compared with."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where a system runs: the model it serves, and folders for logs and scratch files."""

    model: Path
    logs: Path
    scratch: Path


def serve_command(place: Place, port: int, *arguments: str) -> list[str]:
    """`vllm serve`."""
    server = ("vllm.entrypoints.cli.main", "serve", str(place.model), "--host", HOST, "--port", str(port))
    return [*PYTHON, *server, *SERVE_ARGUMENTS, *arguments]


@asynccontextmanager
async def running(command: Sequence[str], log: Path, environment: Mapping[str, str]) -> AsyncIterator[Child]:
    """A process with its descendants, as long as the context is open."""
    child = Child.start(command, log, {**os.environ, **ENVIRONMENT, **environment}, STOP_GRACE_S)
    try:
        yield child
    finally:
        await child.stop()


async def until_ready(children: Sequence[Child], question: Callable[[], Awaitable[bool]]) -> None:
    """Wait until `question` is answered by yes.

    Raises:
        BenchError: it took too long, or a process ended.
    """
    try:
        async with asyncio.timeout(START_LIMIT_S):
            while not await question():
                _check_alive(children)
                await asyncio.sleep(POLL_S)
    except TimeoutError as error:
        raise BenchError(f"not ready after {START_LIMIT_S:g} s: {', '.join(c.log.stem for c in children)}") from error


def _check_alive(children: Sequence[Child]) -> None:
    for child in children:
        if child.code is not None:
            end = "\n".join(last_lines(child.log))
            raise BenchError(f"{child.log.stem}: {describe_exit(child.code)}; the end of its log:\n{end}")
