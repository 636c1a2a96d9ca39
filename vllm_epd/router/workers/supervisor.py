# SPDX-License-Identifier: Apache-2.0
"""The parent of the workers: starts them, replaces those that die, and has all leave together.

It only waits for signals, so that nothing is under way in it when it forks. Each worker holds one end of a pipe
whose other end the parent alone has: however the parent ends, the workers notice and leave.
"""

import logging
import os
import secrets
import signal
import socket
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

from vllm_epd.errors import ConfigError
from vllm_epd.router.workers.worker import Worker

logger = logging.getLogger(__name__)

_LEAVE = (signal.SIGTERM, signal.SIGINT)
_READY = signal.SIGUSR1
_HANDLED = {*_LEAVE, _READY, signal.SIGCHLD}
#: A worker that dies over and over is not replaced more often than that.
_PAUSE_S = 1.0

#: Serves as one worker until told to leave; gets what closes when the parent is gone, and what to call once it listens.
Serve = Callable[[Worker, int, Callable[[], None]], None]


class Supervisor:
    """Keeps `count` workers running, each of which calls `serve`."""

    def __init__(self, count: int, serve: Serve) -> None:
        self._count = count
        self._serve = serve
        self._running: dict[int, int] = {}
        self._due: dict[int, float] = {}
        self._leaving = False
        self._listening, self._listens = os.pipe()
        self._lives, self._life = os.pipe()
        os.set_blocking(self._listening, False)

    def run(self, announce: Callable[[], None]) -> None:
        """Return when all have left after SIGTERM or SIGINT; `announce` is called once all listen.

        Raises:
            ConfigError: a worker ended before all listened.
        """
        before = signal.pthread_sigmask(signal.SIG_BLOCK, _HANDLED)
        try:
            with tempfile.TemporaryDirectory(prefix="vllm-epd-router-") as folder:
                run = secrets.token_hex(8)
                workers = [Worker(number, self._count, Path(folder), run) for number in range(self._count)]
                self._keep_running(workers, announce)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)

    def _keep_running(self, workers: list[Worker], announce: Callable[[], None]) -> None:
        waiting, failed = len(workers), False
        for worker in workers:
            self._start(worker)
        while self._running or not self._leaving:
            self._take(self._next_signal())
            ready = len(self._said())
            if waiting and not (waiting := max(0, waiting - ready)):
                announce()
            for number in self._reaped():
                if waiting and not self._leaving:
                    failed = True
                    self._leave()
                self._due[number] = time.monotonic() + _PAUSE_S
            self._replace(workers)
        if failed:
            raise ConfigError("a worker of the router could not start; its message is above")

    def _next_signal(self) -> int:
        """The next signal, 0 once a worker is due to be replaced."""
        if self._leaving or not self._due:
            return signal.sigwait(_HANDLED)
        found = signal.sigtimedwait(_HANDLED, max(0.0, min(self._due.values()) - time.monotonic()))
        return 0 if found is None else found.si_signo

    def _take(self, number: int) -> None:
        if number in _LEAVE:
            self._leave()

    def _leave(self) -> None:
        """Have all leave; told a second time, they end at once."""
        self._leaving = True
        for pid in self._running.values():
            os.kill(pid, signal.SIGTERM)

    def _said(self) -> bytes:
        try:
            return os.read(self._listening, 4096)
        except BlockingIOError:
            return b""

    def _reaped(self) -> list[int]:
        """The numbers of those that have ended since."""
        ended = []
        for number, pid in list(self._running.items()):
            found, status = os.waitpid(pid, os.WNOHANG)
            if found:
                del self._running[number]
                ended.append(number)
                if not self._leaving:
                    logger.warning("worker %d ended with %d", number, os.waitstatus_to_exitcode(status))
        return ended

    def _replace(self, workers: list[Worker]) -> None:
        for number in [number for number, due in self._due.items() if due <= time.monotonic()]:
            del self._due[number]
            if not self._leaving:
                self._start(workers[number])

    def _start(self, worker: Worker) -> None:
        parent = os.getpid()
        if pid := os.fork():
            self._running[worker.number] = pid
            return
        self._become(worker, parent)

    def _become(self, worker: Worker, parent: int) -> NoReturn:
        code = 1
        try:
            os.close(self._life)
            signal.signal(signal.SIGINT, signal.SIG_IGN)  # of the terminal; the parent hears it too
            signal.pthread_sigmask(signal.SIG_UNBLOCK, _HANDLED)

            def ready() -> None:
                os.write(self._listens, b".")
                if os.getppid() == parent:
                    os.kill(parent, _READY)

            self._serve(worker, self._lives, ready)
            code = 0
        except ConfigError as error:
            logger.error("%s", error)  # noqa: TRY400, a message for the user
        except BaseException:
            logger.exception("worker %d met a bug of the router", worker.number)
        finally:
            os._exit(code)


def hold_port(host: str, port: int) -> socket.socket:
    """A socket that keeps an address for the workers, to whom alone connections come; port 0 takes a free one.

    Raises:
        OSError: it cannot be listened on.
    """
    family, kind, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
    with socket.socket(family, kind) as probe:  # sharing the port, it would find it free where another router shares it
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind(address)
        taken = probe.getsockname()
    held = socket.socket(family, kind)
    held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    held.bind(taken)
    return held
