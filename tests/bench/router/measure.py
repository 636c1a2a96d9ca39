# SPDX-License-Identifier: Apache-2.0
"""The same requests through each front, in turns."""

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from random import Random
from time import clock_gettime, perf_counter

import aiohttp
import psutil
from yarl import URL

from tests.bench import cpu
from tests.bench.client import CHAT
from tests.bench.processes import HOST, PYTHON, running, until_ready
from tests.bench.router.cases import CASES, DIRECT, FRONTS, HOPS, PROXY, ROUTER, Bodies, Case
from tests.bench.router.http import Client
from tests.bench.router.results import Passed
from tests.bench.summary import Summary
from vllm_epd.launch.ports import free_ports

_CLOCK_OF_PROCESS = 2  # Linux: the low bits of a clock that runs while any thread of a process does

WARM_UP = 20
ROUNDS = 4
"""Turns of each front under load, between which the machine may get faster or slower."""


async def measure_router(logs: Path, report: Callable[[str], None]) -> list[Passed]:
    """Start all fronts, and send them all cases."""
    async with _fronts(logs) as urls:
        measured: list[Passed] = []
        for case in CASES:
            report(f"router: {case.name}")
            measured += await _measure(case, _of_case(urls, case))
        return measured


@asynccontextmanager
async def _fronts(logs: Path) -> AsyncIterator[Mapping[str, str]]:
    """The address of each front, as long as the context is open; of proxies, one for each number of calls."""
    names = ("E", "P", DIRECT, ROUTER, PROXY, f"{HOPS} 2", f"{HOPS} 3")
    ports = dict(zip(names, map(str, free_ports(HOST, len(names), Random())), strict=True))
    urls = {name: f"http://{HOST}:{port}" for name, port in ports.items()}
    stages = [urls[name] for name in ("E", "P", DIRECT)]
    commands = {
        "router": ("vllm_epd.cli", "route", "--host", HOST, "--port", ports[ROUTER]),
        "stubs": ("tests.bench.router.stubs", urls[ROUTER], *(ports[name] for name in ("E", "P", DIRECT))),
        "proxy-1": ("tests.bench.router.proxy", ports[PROXY], *stages[2:]),
        "proxy-2": ("tests.bench.router.proxy", ports[f"{HOPS} 2"], *stages[1:]),
        "proxy-3": ("tests.bench.router.proxy", ports[f"{HOPS} 3"], *stages),
    }
    async with AsyncExitStack() as stack:
        children = [
            await stack.enter_async_context(running((*PYTHON, *command), logs / f"front-{name}.log", {}))
            for name, command in commands.items()
        ]
        await until_ready(children, lambda: _ready(urls))
        yield urls


async def _ready(urls: Mapping[str, str]) -> bool:
    try:
        async with aiohttp.ClientSession() as session:
            for url in urls.values():
                async with session.get(url + "/ready") as answer:
                    if url == urls[ROUTER] and answer.status != 200:
                        return False
    except aiohttp.ClientError:
        return False
    return True


def _of_case(urls: Mapping[str, str], case: Case) -> dict[str, str]:
    return {front: urls[f"{HOPS} {case.hops}" if front == HOPS else front] for front in FRONTS}


async def _measure(case: Case, urls: Mapping[str, str]) -> list[Passed]:
    bodies = Bodies(case)
    head = f"POST {CHAT} HTTP/1.1\r\nHost: {HOST}\r\nContent-Type: application/json\r\n"
    sender = _Sender(f"{head}Content-Length: {bodies.nbytes}\r\n\r\n".encode(), bodies, urls)
    alone = await sender.alone(case.alone)
    processes = cpu.servers({front: url for front, url in urls.items() if front != DIRECT})
    walls, used = dict.fromkeys(urls, 0.0), dict.fromkeys(urls, 0.0)
    for _ in range(ROUNDS):
        for front in urls:
            before = _used(processes.get(front))
            walls[front] += await sender.loaded(front, case.loaded // ROUNDS, case.concurrency)
            used[front] += _used(processes.get(front)) - before
    sent = case.loaded // ROUNDS * ROUNDS
    return [
        Passed(front, case, alone[front], sent / walls[front], used[front] / sent if front in processes else None)
        for front in urls
    ]


def _used(process: psutil.Process | None) -> float:
    """Seconds of processor time of a process so far, by its own clock: /proc counts in steps of 10 ms."""
    return 0.0 if process is None else clock_gettime(~process.pid << 3 | _CLOCK_OF_PROCESS)


class _Sender:
    """Sends requests of one case."""

    def __init__(self, head: bytes, bodies: Bodies, urls: Mapping[str, str]) -> None:
        self._head = head
        self._bodies = bodies
        self._urls = urls

    async def alone(self, count: int) -> dict[str, Summary]:
        """Seconds of requests to each front, with one request under way at a time."""
        clients = {front: await self._connect(front) for front in self._urls}
        seconds: dict[str, list[float]] = {front: [] for front in clients}
        for _ in range(WARM_UP + count):
            for front, client in clients.items():
                seconds[front].append(await self._ask(client))
        for client in clients.values():
            client.close()
        return {front: Summary.of(all_of[WARM_UP:]) for front, all_of in seconds.items()}

    async def loaded(self, front: str, count: int, concurrency: int) -> float:
        """Seconds that `count` requests take."""
        clients = [await self._connect(front) for _ in range(concurrency)]
        left = iter(range(count))

        async def work(client: Client) -> None:
            for _ in left:
                await self._ask(client)

        start = perf_counter()
        async with asyncio.TaskGroup() as group:
            for client in clients:
                group.create_task(work(client))
        wall = perf_counter() - start
        for client in clients:
            client.close()
        return wall

    async def _connect(self, front: str) -> Client:
        port = URL(self._urls[front]).port
        assert port is not None
        return await Client.connect(HOST, port)

    async def _ask(self, client: Client) -> float:
        body = self._bodies.next()
        start = perf_counter()
        await client.ask(self._head, body)
        return perf_counter() - start
