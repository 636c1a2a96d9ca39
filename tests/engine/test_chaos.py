# SPDX-License-Identifier: Apache-2.0
"""Instances of every kind are killed under load, and no client reads a wrong token or waits for ever."""

import asyncio
import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.engine.gauges import ROLES, metrics, wait_until_nothing_is_held
from tests.engine.mortals import Mortal, mortals, router_process
from tests.engine.streams import Client
from tests.engine.system import System
from tests.engine.traffic import SIZES, Json, ask, chat, image_part

ROUNDS = int(os.environ.get("EPD_CHAOS_ROUNDS", "1"))
"""In each of which one instance of every role is killed, in the next one the other."""

pytestmark = [pytest.mark.engine, pytest.mark.slow, pytest.mark.timeout(400 + 120 * ROUNDS)]

CLIENTS = 8
TOKENS = 60
PAUSE_S = 3.0
LONGEST_S = 120.0
"""For one request; the slowest one waits for others that start over."""
LEASE_S = 15
IDLE_WITHIN_S = LEASE_S + 15.0
LIMITS = ("--epd-lease-s", str(LEASE_S), "--epd-kv-lease-s", str(LEASE_S), "--epd-fetch-timeout-s", str(LEASE_S))
RETRIES = "vllm_epd_router_retries_total"


@dataclass(frozen=True, slots=True)
class Fleet:
    """Two instances of each role behind a router."""

    router: str
    instances: Sequence[Mortal]

    def of(self, role: str) -> list[Mortal]:
        """The instances of a role."""
        return [each for each in self.instances if each.role == role]


@pytest.fixture(scope="module")
def fleet(start_system: Callable[[str, str], System], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    folder: Path = tmp_path_factory.mktemp("chaos")
    with (
        router_process(folder) as router,
        mortals(router, folder, [role for role in ROLES for _ in range(2)], dict.fromkeys(ROLES, LIMITS)) as instances,
    ):
        yield Fleet(router, instances)


def requests() -> list[Json]:
    """Streams without an image, with one and with two."""
    asked = []
    for index in range(9):
        parts = [image_part(6000 + 10 * index + item, SIZES[(index + item) % len(SIZES)]) for item in range(index % 3)]
        asked.append(chat(parts, f"Describe item {index}.", stream=True, max_tokens=TOKENS, ignore_eos=True))
    return asked


@dataclass(slots=True)
class Load:
    """Clients that ask for one thing after the other.

    Attributes:
        wanted: each request with the tokens of a single server.
        seen: what has become of the requests.
        bad: what no client may see.
    """

    router: str
    wanted: Sequence[tuple[Json, tuple[str, ...]]]
    seen: Counter[str] = field(default_factory=Counter)
    bad: list[str] = field(default_factory=list)
    _over: bool = False

    @contextmanager
    def running(self) -> Iterator[list[asyncio.Task[None]]]:
        """Clients for the length of a `with` block; await them after it."""
        clients = [asyncio.create_task(self._ask_on(number)) for number in range(CLIENTS)]
        try:
            yield clients
        finally:
            self._over = True

    async def _ask_on(self, number: int) -> None:
        turn = number
        while not self._over:
            request, tokens = self.wanted[turn % len(self.wanted)]
            client = Client(self.router, request)
            try:
                async with asyncio.timeout(LONGEST_S):
                    await client.read()
            except TimeoutError:
                self.bad.append(f"a request has not ended after {LONGEST_S:.0f} s")
            self._judge(client, tokens)
            turn += 1

    def _judge(self, client: Client, tokens: tuple[str, ...]) -> None:
        if client.whole:
            self.seen["whole"] += 1
            if tuple(client.tokens) != tokens:
                self.bad.append(f"wrong tokens: {client.tokens} instead of {tokens}")
        elif client.failure:
            self.bad.append(f"after {len(client.tokens)} tokens: {client.failure}")
        else:
            self.bad.append(f"cut after {len(client.tokens)} tokens without a word")


async def test_instances_are_killed_under_load(
    system: System, fleet: Fleet, record_property: Callable[[str, object], None]
) -> None:
    """Of each role one instance is always left, so every request ends as it should."""
    answers = [await ask(system.single, {**each, "stream": False}) for each in requests()]
    load = Load(fleet.router, [(each, answer.tokens) for each, answer in zip(requests(), answers, strict=True)])
    with load.running() as clients:
        await asyncio.sleep(PAUSE_S)
        for number in range(ROUNDS):
            victims = [fleet.of(role)[number % 2] for role in ROLES]
            for victim in victims:
                victim.kill()
                victim.start()
                await asyncio.sleep(PAUSE_S)
            for victim in victims:
                await asyncio.to_thread(victim.wait)
            await asyncio.sleep(PAUSE_S)
    await asyncio.gather(*clients)
    retried = (await metrics(fleet.router))[RETRIES]
    record_property("requests", dict(load.seen))
    record_property("retried", retried)
    assert not load.bad
    assert load.seen["whole"] > CLIENTS * ROUNDS
    assert retried > 0
    await wait_until_nothing_is_held({each.url: each.url for each in fleet.instances}, IDLE_WITHIN_S)
