# SPDX-License-Identifier: Apache-2.0
"""An instance and a real router: registration, and what each learns of the others."""

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager

import pytest

from tests.fakes.instance import FINGERPRINT
from vllm_epd.roles.registrar import Registrar
from vllm_epd.router.app import Router
from vllm_epd.router.config import RouterConfig
from vllm_epd.types import TOKEN_ENV, InstanceInfo, RoleSet

Peers = Mapping[str, Sequence[str]]


@asynccontextmanager
async def serving(router: Router, port: int = 0) -> AsyncIterator[str]:
    async with router.running("127.0.0.1", port) as found:
        yield f"http://127.0.0.1:{found}"


def info(number: int, url: str = "http://127.0.0.1:1") -> InstanceInfo:
    return InstanceInfo(
        f"host:{number}",
        f"epoch-{number}",
        url,
        RoleSet.parse("encode"),
        ("m",),
        FINGERPRINT,
        {},
        (f"tcp://h:{number}",),
    )


class Told:
    """What an instance has been told of its peers."""

    def __init__(self) -> None:
        self.tables: list[dict[str, list[str]]] = []

    async def __call__(self, peers: Peers) -> None:
        self.tables.append({epoch: list(each) for epoch, each in peers.items()})

    async def until(self, condition: Callable[[dict[str, list[str]]], bool]) -> None:
        async with asyncio.timeout(10):
            while not (self.tables and condition(self.tables[-1])):
                await asyncio.sleep(0.01)


@asynccontextmanager
async def registered(router: str, number: int) -> AsyncIterator[Told]:
    told = Told()
    registrar = Registrar(router, f"{router}/health", lambda: info(number), told)
    registrar.start()
    try:
        yield told
    finally:
        await registrar.stop()


@pytest.fixture(autouse=True)
def _no_token(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(TOKEN_ENV, raising=False)


async def test_every_instance_learns_at_once_who_comes_and_goes() -> None:
    async with serving(Router(RouterConfig(heartbeat_s=1.0, grace_s=0.1))) as router, registered(router, 1) as first:
        await first.until(lambda table: table == {"epoch-1": ["tcp://h:1"]})
        async with registered(router, 2) as second:
            both = {"epoch-1": ["tcp://h:1"], "epoch-2": ["tcp://h:2"]}
            await first.until(lambda table: table == both)
            await second.until(lambda table: table == both)
        await first.until(lambda table: table == {"epoch-1": ["tcp://h:1"]})


async def test_an_instance_that_the_router_has_forgotten_comes_back() -> None:
    served = Router(RouterConfig(heartbeat_s=0.2, ttl_s=1.0, grace_s=0.1))
    async with serving(served) as router, registered(router, 1) as told:
        await told.until(lambda table: "epoch-1" in table)
        assert served.parts.services.registry.remove("host:1", "epoch-1")
        await told.until(lambda table: not table)
        await told.until(lambda table: "epoch-1" in table)


async def test_a_router_that_starts_again_tells_its_peers_anew() -> None:
    config = RouterConfig(heartbeat_s=0.2, ttl_s=1.0, grace_s=0.1)
    async with serving(Router(config)) as router:
        port = int(router.rpartition(":")[2])
        told = Told()
        registrar = Registrar(router, f"{router}/health", lambda: info(1), told)
        registrar.start()
        await told.until(lambda table: "epoch-1" in table)
    seen = len(told.tables)
    async with serving(Router(config), port):
        async with asyncio.timeout(10):
            while len(told.tables) == seen or "epoch-1" not in told.tables[-1]:
                await asyncio.sleep(0.01)
        await registrar.stop()


async def test_without_the_token_nothing_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    async with serving(Router(RouterConfig(token="secret", grace_s=0.1))) as router:
        async with registered(router, 1) as told:
            await asyncio.sleep(0.5)
            assert told.tables == []
        monkeypatch.setenv(TOKEN_ENV, "secret")
        async with registered(router, 1) as told:
            await told.until(lambda table: "epoch-1" in table)
