# SPDX-License-Identifier: Apache-2.0
"""Encode, prefill and decode as `vllm-epd up` starts them, behind its router."""

from collections import Counter
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from random import Random

import aiohttp
from prometheus_client.parser import text_string_to_metric_families

from tests.bench.cases import ChatRequest
from tests.bench.client import STREAMED, Answer, open_session, stream
from tests.bench.processes import HOST, PYTHON, SERVE_ARGUMENTS, Place, running, until_ready
from vllm_epd.launch.ports import free_ports
from vllm_epd.launch.probe import router_objection
from vllm_epd.types import LETTERS, RoleSet

ROUTER = "router"
STAGES = {role.value: letter for letter, role in LETTERS.items()}
SECONDS = "vllm_epd_router_stage_seconds_sum"


@dataclass(frozen=True, slots=True)
class _Running:
    session: aiohttp.ClientSession
    urls: Mapping[str, str]

    async def send(self, request: ChatRequest) -> Answer:
        return await stream(self.session, self.urls[ROUTER], request.body(**STREAMED))

    async def stage_seconds(self) -> Mapping[str, float]:
        """What the router counts, of the stages that are calls to instances."""
        async with self.session.get(f"{self.urls[ROUTER]}/metrics") as response:
            families = text_string_to_metric_families(await response.text())
        spent: Counter[str] = Counter()
        for sample in (each for family in families for each in family.samples):
            if sample.name == SECONDS and sample.labels["stage"] in STAGES:
                spent[STAGES[sample.labels["stage"]]] += sample.value
        return spent


@dataclass(frozen=True, slots=True)
class Ours:
    """`vllm-epd up`."""

    name: str = "ours"
    topology: str = "1E1P1D"
    arguments: tuple[str, ...] = ()

    @asynccontextmanager
    async def start(self, place: Place) -> AsyncIterator[_Running]:
        [port] = free_ports(HOST, 1, Random())
        url = f"http://{HOST}:{port}"
        options = ("--topology", self.topology, "--port", str(port), "--log-dir", str(place.logs))
        command = [*PYTHON, "vllm_epd.cli", "up", str(place.model), *options, "--", *SERVE_ARGUMENTS, *self.arguments]
        async with running(command, place.logs / f"{self.name}.log", {}) as child, open_session() as session:

            async def ready() -> bool:
                return await router_objection(session, url) is None

            await until_ready([child], ready)
            yield _Running(session, {**await _instances(session, url), ROUTER: url})


async def _instances(session: aiohttp.ClientSession, router: str) -> dict[str, str]:
    async with session.get(f"{router}/epd/instances") as response:
        listed = (await response.json())["instances"]
    return {RoleSet.parse(each["roles"]).letters: each["url"] for each in listed}
