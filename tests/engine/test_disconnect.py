# SPDX-License-Identifier: Apache-2.0
"""A client that leaves, at whatever stage, leaves nothing behind."""

import asyncio
import json
import random
from collections.abc import Awaitable, Callable

import pytest

from tests.engine import calls, stages
from tests.engine.bad_requests import COMPLETIONS, LARGEST_SIDE
from tests.engine.conftest import LEASE_S
from tests.engine.gauges import (
    FINISHED,
    GENERATED,
    KV_USAGE,
    PROMPTED,
    alive,
    gauge,
    outstanding,
    pinned,
    pool,
    until,
    wait_until_idle,
)
from tests.engine.own_router import described
from tests.engine.system import MODEL, System
from tests.engine.test_exactness import TOLERANCE, differences
from tests.engine.traffic import CHAT, TIMEOUT_S, Json, ask, bytes_part, chat, image_part
from vllm_epd.demo import demo_image

pytestmark = [pytest.mark.engine, pytest.mark.slow]

IDLE_WITHIN_S = LEASE_S + 10.0
MANY_TOKENS = 3000
SEEN = 5
"""Pieces of an answer after which a client leaves; the first of them is prefill's."""

IMAGES = 6
LONG_PROMPTS = 16
"""A single one is prefilled in two steps, and the second of them may be over before anybody has looked."""
Record = Callable[[str, object], None]


async def leave_when(url: str, request: Json, condition: Callable[[], Awaitable[bool]], path: str = CHAT) -> None:
    """Ask, and close the connection as soon as `condition` holds, before there is an answer."""
    async with calls.client(timeout=TIMEOUT_S) as client:
        asked = asyncio.create_task(client.post(url + path, json=request))

        async def settled() -> bool:
            return asked.done() or await condition()

        try:
            await until(settled)
            assert not asked.done(), "the request was over before the client could leave"
        finally:
            asked.cancel()
            await asyncio.gather(asked, return_exceptions=True)


async def next_is_served(system: System, seed: int) -> None:
    """The next client gets the answer of a single server."""
    await alive(system)
    request = chat([image_part(seed)])
    answer = await ask(system.router, request)
    assert not differences(answer, await ask(system.single, request), TOLERANCE[system.dtype])


async def total(system: System, role: str, name: str) -> float:
    """The sum of a metric over all instances of a role."""
    return sum([await gauge(each, name) for each in system.instances(role)])


async def test_while_images_are_encoded(system: System, record_property: Record) -> None:
    finished, prompted = await total(system, "encode", FINISHED), await total(system, "prefill", PROMPTED)

    async def made() -> int:
        return sum([(await pool(each))["encoded"] for each in system.instances("encode")])

    before = await made()

    async def some_are_encoded() -> bool:
        return await made() > before and (await outstanding(system.router))["encode"] > 0

    images = [bytes_part(demo_image(2000 + index, LARGEST_SIDE, LARGEST_SIDE)) for index in range(IMAGES)]
    await leave_when(system.router, chat(images), some_are_encoded)
    await wait_until_idle(system, IDLE_WITHIN_S)
    encoded = await total(system, "encode", FINISHED) - finished
    record_property("encoded", f"{encoded:.0f} of {IMAGES}")
    assert 0 < encoded < IMAGES, "encoding went on"
    assert await total(system, "prefill", PROMPTED) == prompted, "prefill was asked all the same"
    await next_is_served(system, 2100)


async def test_while_long_prompts_are_prefilled(system: System, record_property: Record) -> None:
    (prefill,) = system.instances("prefill")
    prompted, generated = await total(system, "decode", PROMPTED), await gauge(prefill, GENERATED)

    async def is_prefilling() -> bool:
        return await gauge(prefill, KV_USAGE) > 0 and (await outstanding(system.router))["prefill"] > 0

    limits = (await described(prefill))["limits"]
    numbers = random.Random(2200)
    length = limits["max_model_len"] - 100
    prompts = [[numbers.randrange(100, 300) for _ in range(length)] for _ in range(LONG_PROMPTS)]
    request = {"model": MODEL, "prompt": prompts, "max_tokens": 5}
    await leave_when(system.router, request, is_prefilling, COMPLETIONS)
    await wait_until_idle(system, IDLE_WITHIN_S)
    prefilled = await gauge(prefill, GENERATED) - generated
    decoded = await total(system, "decode", PROMPTED) - prompted
    record_property("prefilled", f"{prefilled:.0f} of {LONG_PROMPTS}")
    assert prefilled < LONG_PROMPTS, "prefill went on to its end"
    assert decoded <= prefilled * length, "decode was asked all the same"
    await next_is_served(system, 2201)


async def test_while_tokens_are_decoded(system: System, record_property: Record) -> None:
    (decode,) = system.instances("decode")
    generated = await gauge(decode, GENERATED)
    request = chat([image_part(2300)], stream=True, max_tokens=MANY_TOKENS, ignore_eos=True)
    async with (
        calls.client(timeout=TIMEOUT_S) as client,
        client.stream("POST", system.router + CHAT, json=request) as response,
    ):
        assert response.status_code == 200
        seen = 0
        async for line in response.aiter_lines():
            seen += line.startswith("data: ") and bool(json.loads(line[6:])["choices"][0]["delta"].get("content"))
            if seen == SEEN:
                break
    await wait_until_idle(system, IDLE_WITHIN_S)
    decoded = await gauge(decode, GENERATED) - generated
    record_property("decoded", f"{decoded:.0f} of {MANY_TOKENS}")
    assert 0 < decoded < MANY_TOKENS / 4, "decoding went on"
    await next_is_served(system, 2301)


async def test_all_at_once(system: System) -> None:
    """Thirty clients that leave one after the other, at whatever stage they are by then."""
    requests = [chat([image_part(2400 + index)], stream=index % 2 == 0, max_tokens=500) for index in range(30)]
    async with calls.client(timeout=TIMEOUT_S) as client:
        asked = [asyncio.create_task(client.post(system.router + CHAT, json=request)) for request in requests]
        for index, each in enumerate(asked):
            await asyncio.wait([each], timeout=0.02 * index)
            each.cancel()
        await asyncio.gather(*asked, return_exceptions=True)
    await wait_until_idle(system, IDLE_WITHIN_S)
    await next_is_served(system, 2430)


async def test_what_nobody_comes_for_is_freed_when_its_lease_ends(system: System) -> None:
    """An embedding without a prefill, and a KV cache without a decoder: as after a client, or a router, that left.

    The KV blocks themselves are free as soon as the prefill is over.
    """
    (first, second), (prefill,) = system.instances("encode"), system.instances("prefill")
    await stages.prefill(system, chat([]), [await stages.encode(system, image_part(2500), first)])
    await stages.encode(system, image_part(2501), second)

    async def is_kept() -> bool:
        return await pinned(second) > 0 and (await pool(prefill))["kv"]["pinned"] > 0

    await until(is_kept)
    assert await gauge(prefill, KV_USAGE) == 0
    await wait_until_idle(system, IDLE_WITHIN_S)
    await next_is_served(system, 2502)
