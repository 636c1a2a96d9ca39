# SPDX-License-Identifier: Apache-2.0
"""A child ends with all its descendants, however it ends and however it is ended."""

import asyncio
import os
import signal
import subprocess
import sys

import pytest

from tests.unit.launch.conftest import PATIENCE_S, wait_until
from vllm_epd.launch.process import Child, describe_exit

SLEEP = "import time; print('up', flush=True); time.sleep(300)"
STUBBORN = f"import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); {SLEEP}"
# A daemon in the classical way: forked twice, in a session of its own, adopted by whoever adopts orphans.
DAEMON = (
    f"import os\nif not os.fork():\n    os.setsid()\n    if os.fork():\n        os._exit(0)\n    exec({STUBBORN!r})\n"
)


@pytest.fixture
def start(tmp_path, marked):
    children = []

    def start(code, grace_s=30.0):
        command = [sys.executable, "-I", "-S", "-c", code]
        children.append(Child.start(command, tmp_path / "log", marked.environment, grace_s))
        return children[-1]

    yield start
    for child in children:
        child.kill()
        asyncio.run(child.stop())


def until_up(child, times=1):
    wait_until(lambda: child.log.read_text().count("up") >= times, lambda: child.log.read_text())


async def test_command_that_ends_gives_its_code_and_output(start):
    child = start("import sys; print('out'); sys.stderr.write('err'); sys.exit(3)")
    assert await child.wait() == 3
    assert sorted(child.log.read_text().split()) == ["err", "out"]


async def test_command_that_was_killed_gives_the_signal(start):
    code = await start("import os; os.kill(os.getpid(), 11)").wait()
    assert describe_exit(code) == "killed by SIGSEGV"


async def test_command_that_cannot_be_run_says_so(tmp_path, marked):
    child = Child.start(["/no/such/program"], tmp_path / "log", marked.environment, 1.0)
    assert await child.wait() == 127
    assert "cannot run /no/such/program" in child.log.read_text()


async def test_command_is_a_group_of_the_launchers_session(start):
    child = start("import os; print(os.getsid(0), os.getpgid(0))")
    assert await child.wait() == 0
    session, group = map(int, child.log.read_text().split())
    assert session == os.getsid(0)
    assert group != os.getpgid(0)


async def test_command_has_no_hold_on_the_launchers_pipe(start):
    child = start("import sys; print(repr(sys.stdin.read()))")
    async with asyncio.timeout(PATIENCE_S):
        assert await child.wait() == 0
    assert child.log.read_text() == "''\n"


async def test_stop_lets_the_command_end_by_itself(start):
    handler = "signal.signal(signal.SIGTERM, lambda *_: sys.exit(7))"
    child = start(f"import signal, sys; {handler}; {SLEEP}")
    until_up(child)
    await child.stop()
    assert child.code == 7


async def test_stop_kills_a_command_that_will_not_end(start, marked):
    child = start(STUBBORN, grace_s=0.5)
    until_up(child)
    await child.stop()
    assert describe_exit(child.code) == "killed by SIGKILL"
    assert marked.pids() == []


async def test_stop_waits_out_the_grace_and_kill_does_not(start):
    child = start(STUBBORN)
    until_up(child)
    stopping = asyncio.create_task(child.stop())
    await asyncio.sleep(1.0)
    assert child.code is None
    child.kill()
    await stopping
    assert describe_exit(child.code) == "killed by SIGKILL"


async def test_stop_is_heard_however_early_it_comes(start):
    for step in range(20):
        child = start("import time; time.sleep(300)")
        await asyncio.sleep(0.004 * step)
        await child.stop()
        assert describe_exit(child.code) == "killed by SIGTERM"


async def test_stop_after_the_end_is_no_error(start):
    child = start("pass")
    await child.wait()
    await child.stop()
    assert child.code == 0


async def test_descendants_go_when_the_command_ends(start, marked):
    child = start(f"{DAEMON}import os\nif not os.fork():\n    exec({SLEEP!r})\nimport time; time.sleep(1)")
    until_up(child, times=2)
    assert len(marked.pids()) >= 3
    assert await child.wait() == 0
    assert marked.pids() == []


async def test_descendants_go_when_the_command_is_stopped(start, marked):
    child = start(f"{DAEMON}{STUBBORN}", grace_s=0.5)
    until_up(child, times=2)
    await child.stop()
    assert marked.pids() == []


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_command_goes_with_a_launcher_that_is_killed(number, tmp_path, marked):
    launcher = (
        "import os, sys, time; from pathlib import Path; from vllm_epd.launch.process import Child\n"
        f"Child.start([sys.executable, '-c', {DAEMON + STUBBORN!r}], Path('log'), os.environ, 0.5)\n"
        "time.sleep(300)"
    )
    environment = marked.environment | {"PYTHONPATH": os.getcwd()}
    process = subprocess.Popen([sys.executable, "-c", launcher], env=environment, cwd=tmp_path)
    log = tmp_path / "log"
    wait_until(lambda: log.exists() and log.read_text().count("up") == 2)
    process.send_signal(number)
    process.wait()
    marked.wait_until_gone()


async def test_command_is_told_to_end_when_its_guard_is_killed(start, marked):
    child = start(SLEEP)
    until_up(child)
    os.kill(marked.wait_for("guard.py"), signal.SIGKILL)
    assert describe_exit(await child.wait()) == "killed by SIGKILL"
    marked.wait_until_gone()


async def test_what_survives_its_guard_goes_on_stop(start, marked):
    child = start(STUBBORN)
    until_up(child)
    os.kill(marked.wait_for("guard.py"), signal.SIGKILL)
    await child.wait()
    assert len(marked.pids()) == 1
    await child.stop()
    marked.wait_until_gone()


@pytest.mark.parametrize(("code", "text"), [(0, "exit code 0"), (1, "exit code 1"), (137, "killed by SIGKILL")])
def test_exit_is_described(code, text):
    assert describe_exit(code) == text
