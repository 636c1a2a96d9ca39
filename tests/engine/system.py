# SPDX-License-Identifier: Apache-2.0
"""A stock single server and a topology of the same weights, both real, side by side."""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from random import Random

import httpx

from tests.engine import calls
from vllm_epd.demo import ensure_model, serve_args
from vllm_epd.launch.ports import free_ports
from vllm_epd.roles.derive import IN_PROCESS_EXECUTOR

MODEL = "demo"
STARTUP_S = 420.0
SHARED = ("--enforce-eager", "--max-model-len", "4096", "--enable-auto-tool-choice", "--tool-call-parser", "hermes")
"""Options of single server and topology alike; compiling the models would take most of a test run."""
ONE_PROCESS = ("--distributed-executor-backend", IN_PROCESS_EXECUTOR)
"""The single server runs its worker where a role does: another process would take half as long again to start."""
BIN = Path(sys.executable).parent
CPU_ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "OMP_NUM_THREADS": "1",
}
ONE_TRY = {"VLLM_MEDIA_FETCH_MAX_RETRIES": "1"}
"""Servers go to a URL once; by default they try again twice, seconds later."""


@dataclass(frozen=True, slots=True)
class System:
    """What the tests talk to."""

    family: str
    dtype: str
    single: str
    router: str

    def instances(self, role: str) -> list[str]:
        """URLs of the instances of a role."""
        listed = calls.get(f"{self.router}/epd/instances").json()["instances"]
        return [each["url"] for each in listed if each["roles"] == role]


@contextmanager
def running_system(family: str, dtype: str, topology: str, folder: Path, *options: str) -> Iterator[System]:
    """Start both at once and stop them in the end; `options` go to every instance of the topology."""
    model = ensure_model(family)
    shared = ["--served-model-name", MODEL, "--dtype", dtype, *SHARED, *serve_args(family)]
    with ExitStack() as stack:
        fleet = stack.enter_context(
            process(up_command(model, topology, folder, [*shared, *options]), folder / "up.log")
        )
        single_url, single = stack.enter_context(stock_server(model, [*shared, *ONE_PROCESS], folder / "single.log"))
        router = wait_for_fleet(fleet, folder / "up.log")
        wait_for_server(single, single_url, folder / "single.log")
        yield System(family, dtype, single_url, router)


def up_command(model: Path, topology: str, folder: Path, arguments: Sequence[str]) -> list[str]:
    """`vllm-epd up` on a port of its own choice."""
    up = [str(BIN / "vllm-epd"), "up", str(model), "--topology", topology, "--port", "0", "--log-dir", str(folder)]
    return [*up, "--", *arguments]


@contextmanager
def stock_server(
    model: Path, arguments: Sequence[str], log: Path, environment: dict[str, str] | None = None
) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    """A `vllm serve`; by default one whose plugins are all left out, so that it never heard of roles."""
    port = free_ports("127.0.0.1", 1, Random())[0]
    command = [str(BIN / "vllm"), "serve", str(model), "--host", "127.0.0.1", "--port", str(port), *arguments]
    plugins = {"VLLM_PLUGINS": ""} if environment is None else environment
    with process(command, log, {**CPU_ENVIRONMENT, **plugins}) as server:
        yield f"http://127.0.0.1:{port}", server


@contextmanager
def process(
    command: Sequence[str], log: Path, environment: dict[str, str] | None = None
) -> Iterator[subprocess.Popen[bytes]]:
    """A child with its output in `log`, asked to stop and then made to."""
    with log.open("wb") as output:
        child = subprocess.Popen(
            command,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=os.environ | ONE_TRY | (environment or {}),
            process_group=0,
        )
    try:
        yield child
    finally:
        child.send_signal(signal.SIGTERM)
        try:
            child.wait(60)
        except subprocess.TimeoutExpired:
            os.killpg(child.pid, signal.SIGKILL)
            raise


def wait_for_fleet(child: subprocess.Popen[bytes], log: Path) -> str:
    """The router's URL, once the topology is ready."""
    deadline = time.monotonic() + STARTUP_S
    while (found := re.search(r"ready: (http\S+)", log.read_text(errors="replace"))) is None:
        check_alive(child, log, deadline)
        time.sleep(0.5)
    return found[1]


def wait_for_server(child: subprocess.Popen[bytes], url: str, log: Path) -> None:
    """Return once the server is healthy."""
    deadline = time.monotonic() + STARTUP_S
    while True:
        check_alive(child, log, deadline)
        try:
            if calls.get(f"{url}/health").status_code == 200:
                return
        except httpx.TransportError:
            time.sleep(0.5)


def check_alive(child: subprocess.Popen[bytes], log: Path, deadline: float) -> None:
    """Fail with the end of the log when `child` is gone or late."""
    if child.poll() is not None or time.monotonic() > deadline:
        tail = "\n".join(log.read_text(errors="replace").splitlines()[-40:])
        raise AssertionError(f"{child.args} did not start (exit code {child.poll()}):\n{tail}")
