# SPDX-License-Identifier: Apache-2.0
"""One variant in two processes of its own, that stand still while others are measured.

Threads that spin, such as NIXL's progress thread, would otherwise take the cores of every other variant.
"""

import contextlib
import ctypes
import os
import signal
from collections.abc import Iterator
from multiprocessing import get_context
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Any

from tests.bench.errors import BenchError
from tests.bench.transfer.cases import WARM_UP
from tests.bench.transfer.variants import Variant

PR_SET_PDEATHSIG = 1
START_LIMIT_S = 120.0
READ_LIMIT_S = 60.0
STOP_S = 10.0
PROGRESS_S = 0.0005
"""How often the owner looks after its transport, as the agent does; the reader is in its own loop meanwhile."""


class Pair:
    """The two processes of a variant. Made running; `pause` it until it is its turn."""

    def __init__(self, variant: Variant) -> None:
        self.variant = variant
        context = get_context("spawn")
        self._connections: list[Connection] = []
        self._processes: list[BaseProcess] = []
        for name, target in (("owner", _own), ("reader", _read)):
            ours, theirs = context.Pipe()
            process = context.Process(target=target, args=(theirs, variant), name=f"{variant.name}-{name}", daemon=True)
            process.start()
            theirs.close()
            self._connections.append(ours)
            self._processes.append(process)

    def connect(self) -> None:
        """Wait until the owner is up, and have the reader connect to it."""
        owner, reader = self._connections
        reader.send(self._answer(owner, START_LIMIT_S))
        self._answer(reader, START_LIMIT_S)

    def measure(self, nbytes: int, reads: int, *, check: bool) -> list[float]:
        """Seconds of `reads` reads; with `check` the bytes of the ones for warming up are compared."""
        reader = self._connections[1]
        reader.send((nbytes, reads, check))
        return self._answer(reader, READ_LIMIT_S * reads)

    def pause(self) -> None:
        for process in self._processes:
            os.kill(process.pid, signal.SIGSTOP)

    def resume(self) -> None:
        for process in self._processes:
            os.kill(process.pid, signal.SIGCONT)

    def close(self) -> None:
        self.resume()
        # The reader first: it may have to tell the owner that it goes.
        for connection, process in list(zip(self._connections, self._processes, strict=True))[::-1]:
            connection.close()
            process.join(STOP_S)
            process.kill()

    def _answer(self, connection: Connection, limit_s: float) -> Any:
        try:
            if not connection.poll(limit_s):
                raise BenchError(f"{self.variant.name}: no answer within {limit_s:g} s")
            answer = connection.recv()
        except EOFError as error:
            raise BenchError(f"{self.variant.name}: a process ended") from error
        if isinstance(answer, Exception):
            raise BenchError(f"{self.variant.name}: {answer}")
        return answer


@contextlib.contextmanager
def _reporting(parent: Connection) -> Iterator[None]:
    """A child's life: until the parent closes its end, with errors told to it."""
    os.environ["NIXL_LOG_LEVEL"] = "WARN"
    # A process that stands still would not notice that its parent is gone.
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    except EOFError:
        pass
    except Exception as error:  # noqa: BLE001  whatever ends a child is told
        parent.send(BenchError(f"{type(error).__name__}: {error}"))


def _own(parent: Connection, variant: Variant) -> None:
    with _reporting(parent), variant.open_source() as source:
        parent.send(source.description)
        while not parent.poll(PROGRESS_S):
            source.progress()


def _read(parent: Connection, variant: Variant) -> None:
    with _reporting(parent), variant.open_reader(parent.recv()) as reader:
        parent.send(None)
        while True:
            nbytes, reads, check = parent.recv()
            for _ in range(WARM_UP):
                reader.read(nbytes, check=check)
            parent.send([reader.read(nbytes, check=False) for _ in range(reads)])
