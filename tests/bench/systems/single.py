# SPDX-License-Identifier: Apache-2.0
"""One stock vLLM server that does everything."""

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from random import Random

import aiohttp

from tests.bench.cases import ChatRequest
from tests.bench.client import STREAMED, Answer, open_session, stream
from tests.bench.processes import HOST, STOCK, Place, running, serve_command, until_ready
from vllm_epd.launch.ports import free_ports
from vllm_epd.launch.probe import is_healthy


@dataclass(frozen=True, slots=True)
class _Running:
    session: aiohttp.ClientSession
    urls: Mapping[str, str]

    async def send(self, request: ChatRequest) -> Answer:
        return await stream(self.session, self.urls["single"], request.body(**STREAMED))

    async def stage_seconds(self) -> Mapping[str, float]:
        return {}


@dataclass(frozen=True, slots=True)
class Single:
    """`vllm serve`."""

    name: str = "single"
    arguments: tuple[str, ...] = ()

    @asynccontextmanager
    async def start(self, place: Place) -> AsyncIterator[_Running]:
        [port] = free_ports(HOST, 1, Random())
        url, command = f"http://{HOST}:{port}", serve_command(place, port, *self.arguments)
        async with running(command, place.logs / f"{self.name}.log", STOCK) as child, open_session() as session:
            await until_ready([child], lambda: is_healthy(session, url))
            yield _Running(session, {"single": url})
