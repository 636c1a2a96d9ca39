# SPDX-License-Identifier: Apache-2.0
"""A request that cannot be served is refused as the OpenAI API does, and nobody else notices."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import httpx
import pytest
import zmq.asyncio

from tests.engine import calls, stages
from tests.engine.bad_requests import ALL, LARGEST_SIDE, Bad, complaints, plain, send
from tests.engine.conftest import LEASE_S
from tests.engine.gauges import alive, wait_until_idle
from tests.engine.own_router import described, own_router
from tests.engine.stages import Encoded
from tests.engine.system import MODEL, System, stock_server, wait_for_server
from tests.engine.test_exactness import TOLERANCE, differences
from tests.engine.traffic import CHAT, Json, ask, ask_all, bytes_part, chat, image_part
from vllm_epd.demo import ensure_model, serve_args
from vllm_epd.errors import PeerError
from vllm_epd.router.requests import KEEP_KV
from vllm_epd.transfer.connection import Connection
from vllm_epd.transfer.handshake import Identity
from vllm_epd.transfer.tiers import TransferMemory, open_tiers
from vllm_epd.types import Fingerprint

pytestmark = [pytest.mark.engine, pytest.mark.slow]

FETCH_TIMEOUT_S = 30.0
IDLE_WITHIN_S = LEASE_S + 10.0
SHORT_CONTEXT = 512
Handle = dict[str, Any]


async def serves(system: System, seed: int) -> list[str]:
    """What is wrong with the answer to a good request with an image never seen before."""
    request = chat([image_part(seed)])
    answer = await ask(system.router, request)
    return differences(answer, await ask(system.single, request), TOLERANCE[system.dtype])


@pytest.mark.parametrize("name", ALL)
async def test_a_bad_request_is_refused_and_the_next_one_is_served(system: System, name: str) -> None:
    bad = ALL[name]
    response = await send(system.router, bad)
    assert not complaints(response, bad.status, bad.says)
    if bad.anywhere:
        assert (await send(system.single, bad)).status_code == bad.status
    await alive(system)
    assert not await serves(system, 1000 + list(ALL).index(name))


async def test_bad_requests_among_good_ones_fail_alone_and_leave_nothing_behind(system: System) -> None:
    good = [serves(system, seed) for seed in range(1100, 1106)]
    bad = [send(system.router, each) for each in ALL.values()]
    responses, failures = await asyncio.gather(asyncio.gather(*bad), asyncio.gather(*good))
    assert not any(failures), failures
    wrong = {
        name: found
        for (name, each), response in zip(ALL.items(), responses, strict=True)
        if (found := complaints(response, each.status, each.says))
    }
    assert not wrong
    await wait_until_idle(system, IDLE_WITHIN_S)
    await alive(system)


def _without(handle: Handle, key: str) -> Handle:
    return {name: value for name, value in handle.items() if name != key}


def _at(handle: Handle, other: Handle) -> Handle:
    return {**handle, "epoch": other["epoch"], "rank": other["rank"]}


USELESS: dict[str, Callable[[Handle, Handle], Any]] = {
    "held by another": _at,
    "an address": lambda handle, other: {**handle, "peer": "tcp://127.0.0.1:9"},
    "another rank": lambda handle, other: {**handle, "rank": 7},
    "a negative rank": lambda handle, other: {**handle, "rank": -1},
    "another size": lambda handle, other: {**handle, "nbytes": handle["nbytes"] + 1},
    "no size": lambda handle, other: {**handle, "nbytes": 0},
    "another epoch": lambda handle, other: {**handle, "epoch": "0" * 32},
    "another item": lambda handle, other: {**handle, "key": other["key"]},
    "another wire version": lambda handle, other: {**handle, "version": 99},
    "a key missing": lambda handle, other: _without(handle, "lease"),
    "a key too many": lambda handle, other: {**handle, "more": 1},
    "a wrong type": lambda handle, other: {**handle, "epoch": 5},
    "text": lambda handle, other: "handle",
    "a list": lambda handle, other: [handle],
    "nothing": lambda handle, other: None,
}
"""What P is given instead of a handle, made of the right one and of one of another item at another instance."""


async def prefill_response(system: System, items: list[Encoded]) -> httpx.Response:
    """P's answer, whatever it is."""
    body = {**stages.with_items(chat([]), items), "max_tokens": 1, "kv_transfer_params": KEEP_KV}
    async with calls.client(timeout=2 * FETCH_TIMEOUT_S) as client:
        return await client.post(system.instances("prefill")[0] + CHAT, json=body)


async def fails_alone(system: System, items: list[Encoded]) -> list[str]:
    """What is wrong with P's refusal of these items."""
    try:
        response = await prefill_response(system, items)
    except httpx.TimeoutException:
        return [f"no answer within {2 * FETCH_TIMEOUT_S:.0f} s"]
    return complaints(response, 500)


async def test_useless_handles_fail_their_own_requests_only(system: System) -> None:
    first, second = system.instances("encode")
    items = [await stages.encode(system, image_part(1200 + index), first) for index in range(len(USELESS))]
    other = await stages.encode(system, image_part(1299), second)
    useless = [
        replace(item, handle=make(item.handle, other.handle))
        for item, make in zip(items, USELESS.values(), strict=True)
    ]
    refusals, good = await asyncio.gather(
        asyncio.gather(*(fails_alone(system, [item]) for item in useless)),
        asyncio.gather(*(serves(system, seed) for seed in range(1300, 1306))),
    )
    assert not any(good), good
    assert not {name: found for name, found in zip(USELESS, refusals, strict=True) if found}
    await alive(system)
    await wait_until_idle(system, IDLE_WITHIN_S)
    assert not await serves(system, 1306)


async def test_items_without_any_handle_fail_their_own_request_only(system: System) -> None:
    item = await stages.encode(system, image_part(1310))
    body = {
        **stages.with_items(chat([]), [item]),
        "max_tokens": 1,
        "kv_transfer_params": KEEP_KV,
        "ec_transfer_params": {},
    }
    response = await send(system.instances("prefill")[0], Bad(body))
    assert not complaints(response, 500)
    await alive(system)
    assert not await serves(system, 1311)


@pytest.fixture(scope="module")
def foreign_encoder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of an encode instance of other weights, and of a shorter context, under the same name."""
    log = tmp_path_factory.mktemp("foreign") / "encode.log"
    arguments = ["--served-model-name", MODEL, "--dtype", "float32", *serve_args("qwen2.5-vl")]
    arguments += ["--epd-role", "encode", "--epd-lease-s", str(LEASE_S), "--max-model-len", str(SHORT_CONTEXT)]
    with stock_server(ensure_model("qwen2.5-vl", seed=1), arguments, log, {}) as (url, child):
        wait_for_server(child, url, log)
        yield url


async def language_models(system: System) -> list[Json]:
    """What the prefill and the decode instances say of themselves."""
    return [await described(each) for role in ("prefill", "decode") for each in system.instances(role)]


async def test_instances_of_different_weights_are_not_combined(system: System, foreign_encoder: str) -> None:
    async with own_router([await described(foreign_encoder), *await language_models(system)]) as router:
        response = await send(router, Bad(chat([image_part(1400)])))
        assert not complaints(response, 503, "weights")
        text = chat([], "Describe.")
        assert not differences(await ask(router, text), await ask(system.single, text), TOLERANCE[system.dtype])


async def test_an_image_larger_than_the_context_is_refused_by_whom_it_is_sent_to(
    system: System, foreign_encoder: str
) -> None:
    """The router is made to believe that all is well; so it is the encode instance that notices."""
    models = await language_models(system)
    liar = await described(foreign_encoder, fingerprint=models[0]["fingerprint"])
    large = Bad(chat([bytes_part(plain(LARGEST_SIDE, 20))]))
    async with own_router([liar, *models]) as router:
        assert not complaints(await send(router, large), 400, "maximum")


async def test_different_weights_are_noticed_where_the_embedding_is_fetched(
    system: System, foreign_encoder: str
) -> None:
    """The router is made to believe that all is well; so it is the prefill instance that notices."""
    models = await language_models(system)
    liar = await described(foreign_encoder, fingerprint=models[0]["fingerprint"])
    async with own_router([liar, *models]) as router, known_to(system.router, foreign_encoder):
        bad = send(router, Bad(chat([image_part(1405)])))
        response, served = await asyncio.gather(bad, serves(system, 1406))
    assert not complaints(response, 500)
    assert not served
    await alive(system)


async def test_among_encode_instances_only_those_of_the_same_weights_are_asked(
    system: System, foreign_encoder: str
) -> None:
    right = [await described(each) for each in system.instances("encode")]
    async with own_router([await described(foreign_encoder), *right, *await language_models(system)]) as router:
        requests = [chat([image_part(seed), image_part(seed + 1)]) for seed in (1410, 1412)]
        answers = await ask_all(router, requests)
    for request, answer in zip(requests, answers, strict=True):
        assert not differences(answer, await ask(system.single, request), TOLERANCE[system.dtype])


async def test_an_embedding_of_different_weights_is_refused_by_hand_too(system: System, foreign_encoder: str) -> None:
    item = await stages.encode(system, image_part(1420), foreign_encoder)
    prefill = await described(system.instances("prefill")[0])
    assert "weights" in await refusal_of(foreign_encoder, prefill["fingerprint"])
    async with known_to(system.router, foreign_encoder):
        refused, served = await asyncio.gather(fails_alone(system, [item]), serves(system, 1421))
    assert not refused
    assert not served
    await alive(system)


async def test_an_embedding_of_an_instance_that_is_not_registered_is_not_fetched(
    system: System, foreign_encoder: str
) -> None:
    item = await stages.encode(system, image_part(1430), foreign_encoder)
    refused, served = await asyncio.gather(fails_alone(system, [item]), serves(system, 1431))
    assert not refused
    assert not served


@asynccontextmanager
async def known_to(router: str, instance: str) -> AsyncIterator[None]:
    """The instance is registered at the router for the length of the block, too short for it to be dropped again."""
    info = await described(instance)
    async with calls.client() as client:
        response = await client.post(f"{router}/epd/instances", json=info)
        assert response.status_code == 200, response.text
        try:
            yield
        finally:
            await client.delete(f"{router}/epd/instances/{info['instance_id']}", params={"epoch": info["epoch"]})


async def refusal_of(instance: str, fingerprint: Json) -> str:
    """Why an encode instance does not talk to a consumer of this fingerprint."""
    info = await described(instance)
    identity = Identity("test", Fingerprint.from_mapping(fingerprint))
    tiers = open_tiers(TransferMemory(2**20))
    with zmq.asyncio.Context() as context:
        connection = Connection(context, info["agents"][0])
        try:
            async with asyncio.timeout(10):
                await connection.greet(identity, info["epoch"], tiers)
        except PeerError as error:
            return str(error)
        finally:
            await connection.close()
            tiers.close()
    raise AssertionError("it was let in")
