# SPDX-License-Identifier: Apache-2.0
"""Instances that are frozen, killed and started anew, one by one, behind a router that outlives them."""

import os
import re
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from random import Random

import httpx
import psutil

from tests.engine import calls
from tests.engine.system import BIN, CPU_ENVIRONMENT, MODEL, SHARED, STARTUP_S, check_alive, process
from vllm_epd.demo import ensure_model, serve_args
from vllm_epd.launch.ports import free_ports

POLL_S = 0.1
TRACKER = "multiprocessing.resource_tracker"


class Mortal:
    """A place on this machine where one instance of a role runs after another, always at the same address."""

    def __init__(
        self, role: str, router: str, folder: Path, options: Sequence[str] = (), family: str = "qwen2.5-vl"
    ) -> None:
        self.role = role
        (port,) = free_ports("127.0.0.1", 1, Random())
        self.url = f"http://127.0.0.1:{port}"
        self._router = router
        self._log = folder / f"{role}-{port}.log"
        self._command = [str(BIN / "vllm"), "serve", str(ensure_model(family)), "--host", "127.0.0.1"]
        self._command += ["--port", str(port), "--served-model-name", MODEL, "--dtype", "float32", *SHARED]
        self._command += [*serve_args(family), "--epd-role", role, "--epd-router", router, *options]
        self._running = ExitStack()
        self._child: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Begin a new life; `wait` for it."""
        self._child = self._running.enter_context(process(self._command, self._log, CPU_ENVIRONMENT))

    def wait(self) -> None:
        """Return once the router gives it work."""
        assert self._child is not None
        deadline = time.monotonic() + STARTUP_S
        while not self.is_registered():
            check_alive(self._child, self._log, deadline)
            time.sleep(POLL_S)

    @property
    def lives(self) -> bool:
        """Whether its process runs."""
        return self._child is not None and self._child.poll() is None

    def is_answering(self) -> bool:
        """Whether it has an API at the moment."""
        try:
            return calls.get(f"{self.url}/health").status_code == httpx.codes.OK
        except httpx.TransportError:
            return False

    def is_registered(self) -> bool:
        """Whether the router lists the life that runs now."""
        listed = calls.get(f"{self._router}/epd/instances").json()["instances"]
        try:
            epoch = calls.get(f"{self.url}/epd/info").json()["epoch"]
        except httpx.TransportError:
            return False
        return any(each["url"] == self.url and each["epoch"] == epoch for each in listed)

    def freeze(self) -> None:
        """Stop all its processes where they are."""
        self._signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """Let it go on."""
        self._signal(signal.SIGCONT)

    def kill(self) -> None:
        """End all its processes at once, but for Python's own which then removes their semaphores."""
        assert self._child is not None
        parent = psutil.Process(self._child.pid)
        for each in (parent, *parent.children(recursive=True)):
            with suppress(psutil.NoSuchProcess):
                if TRACKER in " ".join(each.cmdline()):
                    each.resume()
                else:
                    each.kill()
        self._child.wait()
        self._running.close()

    def stop(self) -> None:
        """Ask it to end."""
        self._running.close()

    def _signal(self, number: signal.Signals) -> None:
        assert self._child is not None
        os.killpg(self._child.pid, number)


@contextmanager
def router_process(folder: Path, *options: str) -> Iterator[str]:
    """The URL of a router of its own process."""
    log = folder / "router.log"
    with process([str(BIN / "vllm-epd"), "route", "--port", "0", *options], log) as child:
        deadline = time.monotonic() + STARTUP_S
        while (found := re.search(r"router listening on (http\S+)", log.read_text(errors="replace"))) is None:
            check_alive(child, log, deadline)
            time.sleep(POLL_S)
        yield found[1]


@contextmanager
def mortals(
    router: str, folder: Path, roles: Sequence[str], options: Mapping[str, Sequence[str]]
) -> Iterator[list[Mortal]]:
    """One instance of each of `roles`, all of them up, each with the `options` of its role."""
    instances = [Mortal(role, router, folder, options[role]) for role in roles]
    with living(instances):
        yield instances


@contextmanager
def living(instances: Sequence[Mortal]) -> Iterator[None]:
    """All of them are up at the beginning of a `with` block, and gone after it."""
    try:
        for each in instances:
            each.start()
        for each in instances:
            each.wait()
        yield
    finally:
        for each in instances:
            each.stop()
