# SPDX-License-Identifier: Apache-2.0
"""The router as a process: it says where it listens, and leaves in good order."""

import asyncio
import json
import os
import re
import signal
import sys
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from tests.fakes.instance import FakeInstance
from tests.unit.router.conftest import soon

ROOT = Path(__file__).parents[3]
JSON = {"Content-Type": "application/json"}
CODE = """
from vllm_epd.router.app import serve
from vllm_epd.router.config import RouterConfig
serve(RouterConfig(host={host!r}, port={port}, grace_s={grace}, access_log={access_log!r}))
"""


@asynccontextmanager
async def _router(host="127.0.0.1", port=0, grace=10.0, access_log=None):
    code = CODE.format(host=host, port=port, grace=grace, access_log=access_log)
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", code, stderr=asyncio.subprocess.PIPE, env=env)
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()


async def _url(process):
    async for line in process.stderr:
        if found := re.search(rb"router listening on (http://\S+)$", line.strip()):
            return found[1].decode()
    raise AssertionError("it never listened")


async def _started(process, session):
    """A stream that waits for its second word."""
    url = await _url(process)
    fake = FakeInstance("EPD")
    await fake.start()
    fake.does.words = ["one", "two"]
    fake.does.gate = asyncio.Event()
    async with session.post(url + "/epd/instances", json=fake.info().to_mapping()) as answer:
        assert answer.status == 200
    body = {"model": "tiny", "stream": True, "messages": [{"role": "user", "content": "x"}]}
    response = await session.post(url + "/v1/chat/completions", json=body)
    assert b"one" in await response.content.readuntil(b"\n\n")
    return url, fake, response


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_idle_it_leaves_at_once(number):
    async with _router() as process:
        await _url(process)
        process.send_signal(number)
        assert await asyncio.wait_for(process.wait(), 30) == 0


async def test_running_requests_finish_and_no_new_ones_are_taken(session):
    async with _router() as process:
        url, fake, response = await _started(process, session)
        process.terminate()

        async def refuses():
            try:
                async with session.get(url + "/health", headers={"Connection": "close"}):
                    return False
            except OSError:
                return True

        while not await refuses():
            await asyncio.sleep(0.01)
        assert process.returncode is None
        fake.does.gate.set()
        rest = await response.read()
        assert b"two" in rest
        assert rest.endswith(b"data: [DONE]\n\n")
        assert await asyncio.wait_for(process.wait(), 30) == 0
        await fake.stop()


async def test_the_grace_period_ends(session):
    async with _router(grace=0.3) as process:
        _, fake, response = await _started(process, session)
        process.terminate()
        assert await asyncio.wait_for(process.wait(), 30) == 0
        await soon(lambda: fake.seen[0].outcome == "aborted")
        response.close()
        await fake.stop()


async def test_an_address_that_is_taken(session):
    async with _router() as first:
        port = int((await _url(first)).rsplit(":", 1)[1])
        async with _router(port=port) as second:
            _, said = await asyncio.wait_for(second.communicate(), 30)
            assert second.returncode != 0
            assert f"cannot listen on 127.0.0.1:{port}".encode() in said


async def test_it_writes_the_access_log_that_is_asked_for(session, tmp_path):
    file = tmp_path / "access.jsonl"
    async with _router(access_log=str(file)) as process:
        url = await _url(process)
        body = {"model": "tiny", "messages": []}
        async with session.post(url + "/v1/chat/completions", json=body, headers={"X-Request-Id": "abc"}) as answer:
            assert answer.status == 503
        (line,) = file.read_text().splitlines()
        assert (json.loads(line)["request_id"], json.loads(line)["reason"]) == ("abc", "NoInstanceError")


async def test_an_open_registration_api_is_warned_of():
    async with _router(host="0.0.0.0") as process:
        lines = b""
        async for line in process.stderr:
            lines += line
            if b"listening" in line:
                break
        assert b"anyone who reaches 0.0.0.0 may register instances; set EPD_TOKEN" in lines


def _page_faults(process):
    return int(Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()[7])


async def test_the_memory_of_one_body_serves_the_next(session):
    async with _router() as process:
        url = await _url(process)

        async def ask(count):
            for _ in range(count):
                body = b'{"model": "' + b"x" * 300_000
                async with session.post(url + "/v1/chat/completions", data=body, headers=JSON) as answer:
                    assert answer.status == 400

        await ask(30)
        before = _page_faults(process)
        await ask(60)
        assert (_page_faults(process) - before) / 60 < 10
