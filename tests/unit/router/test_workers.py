# SPDX-License-Identifier: Apache-2.0
"""A router of several processes: one port, one view of the instances, and none that is missed for long."""

import asyncio
import json
import os
import signal
import sys
from collections import Counter
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
import psutil
import pytest

from tests.fakes.instance import FakeInstance
from tests.unit.router.conftest import soon
from vllm_epd.router.instances import InstanceRegistry
from vllm_epd.router.placement import has_room
from vllm_epd.router.workers.numbers import together

ROOT = Path(__file__).parents[3]
WORKERS = 3
CODE = """
from vllm_epd.router.app import serve
from vllm_epd.router.config import RouterConfig
serve(RouterConfig(port={port}, workers={workers}, grace_s=10.0, token=None, access_log={access_log!r}))
"""


class Router:
    """The parent of a router's workers, and its address once all listen."""

    def __init__(self, process):
        self.process = process
        self.url = ""

    @property
    def workers(self):
        return psutil.Process(self.process.pid).children()

    async def listens(self):
        async for line in self.process.stderr:
            if b"router listening on " in line:
                self.url = line.split()[-1].decode()
                self._rest = asyncio.create_task(self.process.stderr.read())
                return
        raise AssertionError("it never listened")

    async def ask(self, method, path, **kwargs):
        """One request over a connection of its own, which reaches any of the workers."""
        async with (
            aiohttp.ClientSession(connector=aiohttp.TCPConnector(force_close=True)) as session,
            session.request(method, self.url + path, **kwargs) as answer,
        ):
            return answer.status, (await answer.json() if answer.content_type == "application/json" else None)

    async def by_worker(self, enough=WORKERS):
        """What is there, as each worker sees it."""
        found = {}
        for _ in range(500):
            _, health = await self.ask("GET", "/health")
            found[health.pop("worker")] = health["stages"]
            if len(found) == enough:
                return list(found.values())
        raise AssertionError(f"only {sorted(found)} answered")

    async def register(self, fake):
        assert (await self.ask("POST", "/epd/instances", json=fake.info().to_mapping()))[0] == 200

    async def leave(self):
        self.process.terminate()
        return await asyncio.wait_for(self.process.wait(), 30)


@asynccontextmanager
async def router(workers=WORKERS, port=0, access_log=None):
    code = CODE.format(workers=workers, port=port, access_log=access_log)
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", code, stderr=asyncio.subprocess.PIPE, env={**os.environ, "PYTHONPATH": str(ROOT)}
    )
    started = Router(process)
    try:
        yield started
    finally:
        if process.returncode is None:
            children = started.workers
            process.kill()
            psutil.wait_procs(children, timeout=20)
        await process.wait()


@pytest.fixture
async def running():
    async with router() as started:
        await started.listens()
        yield started


@asynccontextmanager
async def instance(letters):
    fake = FakeInstance(letters)
    await fake.start()
    try:
        yield fake
    finally:
        await fake.stop()


def seen(count):
    return [{"encode": count, "prefill": count, "decode": count}] * WORKERS


async def test_what_one_worker_is_told_all_know(running):
    async with instance("EPD") as fake:
        await running.register(fake)
        assert await running.by_worker() == seen(1)
        epoch = {"epoch": fake.epoch}
        beat = {**epoch, "roles": "prefill+decode"}
        assert (await running.ask("PUT", f"/epd/instances/{fake.instance_id}", json=beat))[0] == 200
        assert await running.by_worker() == [{"encode": 0, "prefill": 1, "decode": 1}] * WORKERS
        assert (await running.ask("DELETE", f"/epd/instances/{fake.instance_id}", params=epoch))[0] == 204
        assert await running.by_worker() == seen(0)


async def test_workers_share_an_access_log(tmp_path):
    file, ids = tmp_path / "access.jsonl", {f"id{number}" for number in range(20)}
    async with router(access_log=str(file)) as running:
        await running.listens()
        for each in ids:
            await running.ask("POST", "/v1/completions", json={"prompt": "x"}, headers={"X-Request-Id": each})
        lines = [json.loads(line) for line in file.read_text().splitlines()]
    assert sorted(line["request_id"] for line in lines) == sorted(ids)


async def test_whichever_worker_is_asked_says_the_same_of_peers(running):
    async with instance("EPD") as fake:
        await running.register(fake)
        tables = [await running.ask("GET", "/epd/peers") for _ in range(30)]
        assert len({table["version"] for _, table in tables}) == 1


async def test_requests_are_spread_and_counted_by_worker(running):
    async with instance("EPD") as fake:
        await running.register(fake)
        for number in range(60):
            body = {"model": "tiny", "prompt": f"word {number}"}
            assert (await running.ask("POST", "/v1/completions", json=body))[0] == 200
        async with aiohttp.ClientSession() as session, session.get(running.url + "/metrics") as answer:
            lines = (await answer.text()).splitlines()
        found = Counter()
        for line in lines:
            if line.startswith('vllm_epd_router_requests_total{route="/v1/completions"'):
                found[line.split('worker="')[1][0]] += float(line.split()[-1])
        assert len(found) == WORKERS
        assert sum(found.values()) == 60
        assert max(found.values()) < 50


async def test_a_worker_that_is_killed_takes_only_its_own_connections_and_is_replaced(running):
    async with instance("EPD") as fake, aiohttp.ClientSession() as session:
        await running.register(fake)
        fake.does.words = ["one", "two"]
        fake.does.gate = asyncio.Event()
        body = {"model": "tiny", "stream": True, "prompt": "x"}
        streams = []
        for _ in range(24):
            response = await session.post(running.url + "/v1/completions", json=body)
            await response.content.readuntil(b"\n\n")
            streams.append(response)
        before = {worker.pid for worker in running.workers}
        victim = next(worker for worker in running.workers if _accepted(worker))
        theirs = _accepted(victim)
        victim.kill()
        await soon(lambda: len(running.workers) == WORKERS and {each.pid for each in running.workers} != before)
        fake.does.gate.set()
        broken = [await _broke(response) for response in streams]
        assert 0 < sum(broken) <= theirs < len(streams)
        for _ in range(400):
            if len(await _answering(running)) == WORKERS:
                break
            await asyncio.sleep(0.05)
        assert await running.by_worker() == seen(1)


async def test_running_requests_finish_when_all_leave(running):
    async with instance("EPD") as fake, aiohttp.ClientSession() as session:
        await running.register(fake)
        fake.does.words = ["one", "two"]
        fake.does.gate = asyncio.Event()
        body = {"model": "tiny", "stream": True, "prompt": "x"}
        streams = [await session.post(running.url + "/v1/completions", json=body) for _ in range(6)]
        for response in streams:
            await response.content.readuntil(b"\n\n")
        leaving = asyncio.create_task(running.leave())
        await asyncio.sleep(0.3)
        assert not leaving.done()
        fake.does.gate.set()
        for response in streams:
            assert (await response.read()).endswith(b"data: [DONE]\n\n")
        assert await leaving == 0


async def test_idle_they_leave_at_once(running):
    children = running.workers
    assert await running.leave() == 0
    assert not psutil.wait_procs(children, timeout=5)[1]


async def test_workers_whose_parent_is_killed_leave(running):
    children = running.workers
    running.process.send_signal(signal.SIGKILL)
    await running.process.wait()
    assert not psutil.wait_procs(children, timeout=20)[1]


@pytest.mark.parametrize("workers", [1, 2])
async def test_a_port_that_a_router_of_several_has_is_taken(running, workers):
    port = int(running.url.rsplit(":", 1)[1])
    async with router(workers, port) as second:
        said = await asyncio.wait_for(second.process.stderr.read(), 30)
        assert f"cannot listen on 127.0.0.1:{port}".encode() in said
        assert await second.process.wait() != 0


def test_each_worker_counts_on_its_share_of_a_pool(clock):
    registry = InstanceRegistry(clock, 6.0, shares=4)
    registry.register(FakeInstance("E", limits={"pool_bytes": 1000}).info())
    (encoder,) = registry.available()
    assert has_room(encoder, "slot", 250)
    assert not has_room(encoder, "slot", 251)


def test_numbers_of_several_workers_stay_apart():
    text = '# HELP a_total What.\n# TYPE a_total counter\na_total{{x="y"}} {}\n'
    shown = together({0: text.format(1), 2: text.format(5)}).decode()
    assert shown.count("# TYPE a_total counter") == 1
    assert 'a_total{worker="0",x="y"} 1.0' in shown
    assert 'a_total{worker="2",x="y"} 5.0' in shown


def _accepted(worker):
    """How many clients a worker has."""
    connections = worker.net_connections("tcp")
    (port,) = {each.laddr.port for each in connections if each.status == psutil.CONN_LISTEN}
    return sum(each.status == psutil.CONN_ESTABLISHED and each.laddr.port == port for each in connections)


async def _broke(response):
    try:
        return not (await response.read()).endswith(b"data: [DONE]\n\n")
    except aiohttp.ClientError:
        return True


async def _answering(running):
    return {(await running.ask("GET", "/health"))[1]["worker"] for _ in range(30)}
