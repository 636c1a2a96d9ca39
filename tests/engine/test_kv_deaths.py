# SPDX-License-Identifier: Apache-2.0
"""P or D is killed, or the client leaves, in every state of a hand-over of KV caches."""

import asyncio
import random
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from uuid import uuid4

import pytest

from tests.engine.gauges import KV_USAGE, POLL_S, WAITING, gauge, pool, until, wait_until_nothing_is_held
from tests.engine.mortals import Mortal, mortals, router_process
from tests.engine.stages import post
from tests.engine.streams import Client, are_right
from tests.engine.system import System
from tests.engine.traffic import Json, chat

pytestmark = [pytest.mark.engine, pytest.mark.slow]

LEASE_S = 5
"""After which nobody waits for what has died: of what is offered, and of a read that was granted."""
IDLE_WITHIN_S = LEASE_S + 10.0
KV_TOKENS = 2**30 / 4096
"""For which P has room: its KV caches have 1 GiB, and those of a token 4 KiB."""
CHUNK_TOKENS = 1024
PROMPT_TOKENS = 3500
"""Of a long prompt: four chunks."""
CHUNKS = 4
ANSWER_TOKENS = 200
SEEN = 5
POOL_BYTES = 24 * 2**20
"""P's, for one long prompt, but not for two."""
SLOW = ("--max-num-batched-tokens", "256", "--max-num-seqs", "8")
"""Several steps for each chunk."""
LIMITS = ("--epd-lease-s", str(LEASE_S), "--epd-kv-lease-s", str(LEASE_S), "--epd-fetch-timeout-s", str(LEASE_S))
OPTIONS = {
    "prefill": (*LIMITS, "--epd-kv-pool-bytes", str(POOL_BYTES), *SLOW),
    "decode": (*LIMITS, "--max-num-seqs", "1"),
}


@dataclass(frozen=True, slots=True)
class Pair:
    """One P, one D, and the router before them."""

    router: str
    prefill: Mortal
    decode: Mortal

    def go_on(self) -> None:
        """Thaw what is frozen, and start what is dead."""
        for each in (self.prefill, self.decode):
            if each.lives:
                each.thaw()
            else:
                each.start()

    def wait(self) -> None:
        """Return once both are at work."""
        for each in (self.prefill, self.decode):
            each.wait()


@pytest.fixture(scope="module")
def pair(start_system: Callable[[str, str], System], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    folder: Path = tmp_path_factory.mktemp("deaths")
    with (
        router_process(folder) as router,
        mortals(router, folder, ("prefill", "decode"), OPTIONS) as (prefill, decode),
    ):
        yield Pair(router, prefill, decode)


def long_request() -> Json:
    """A stream after a prompt that nobody has seen yet; each digit is a token."""
    digits = "".join(random.choices("0123456789", k=PROMPT_TOKENS))
    return chat([], digits, max_tokens=ANSWER_TOKENS, stream=True, ignore_eos=True)


@dataclass(slots=True)
class Handover:
    """A request on its way through a pair, and what else goes on."""

    pair: Pair
    client: Client
    reading: asyncio.Task[None]
    others: list[asyncio.Task[None]] = field(default_factory=list)

    async def leave(self) -> None:
        """The client closes its connection."""
        assert not self.reading.done(), f"the request was over before the client could leave: {self.client.failure}"
        await _cancelled(self.reading)

    async def end_others(self) -> None:
        """Nothing else goes on any more."""
        for each in self.others:
            await _cancelled(each)


async def _cancelled(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


def begun(pair: Pair) -> Handover:
    client = Client(pair.router, long_request())
    return Handover(pair, client, asyncio.create_task(client.read()))


async def chunks(instance: Mortal, count: str) -> int:
    """What the pool of KV caches says there: `encoded` and `fetched` since its start, `pinned` now."""
    return int((await pool(instance.url))["kv"][count])


async def queued(pair: Pair) -> Handover:
    """P has no room for the KV cache: another prompt's waits there for a D that never comes."""
    other = {**long_request(), "stream": False, "max_tokens": 1}
    await post(pair.prefill.url, {**other, "kv_transfer_params": {"epd": {"offer": uuid4().hex}}})
    handover = begun(pair)

    async def waits() -> bool:
        return await gauge(pair.prefill.url, WAITING) > 0

    await until(waits)
    return handover


async def gathering(pair: Pair) -> Handover:
    """P has saved a part of the chunks, and D has read none: both stand still."""
    pair.decode.freeze()
    handover = begun(pair)

    async def computed() -> float:
        return await gauge(pair.prefill.url, KV_USAGE) * KV_TOKENS

    while (tokens := await computed()) <= CHUNK_TOKENS:
        await go_a_little_way(pair.prefill)
    assert tokens < PROMPT_TOKENS, "P is done"
    return handover


async def half_read(pair: Pair) -> Handover:
    """D has a part of the chunks, and P stands still."""
    before = await chunks(pair.decode, "fetched")
    handover = begun(pair)
    while not (some := await chunks(pair.decode, "fetched") - before):
        await go_a_little_way(pair.prefill)
    assert some < CHUNKS, "P is done"
    return handover


async def go_a_little_way(instance: Mortal) -> None:
    """Let the engine of an instance work for a moment, and what it says of that arrive."""
    instance.thaw()
    await asyncio.sleep(POLL_S)
    instance.freeze_engine()
    await asyncio.sleep(POLL_S)


async def read(pair: Pair) -> Handover:
    """D has all chunks, and decodes for somebody of whom the router does not know: it would wait for D otherwise."""
    other = Client(pair.decode.url, chat([], max_tokens=3000, stream=True, ignore_eos=True))
    reading = asyncio.create_task(other.read())

    async def decodes() -> bool:
        return len(other.tokens) >= SEEN

    await until(decodes)
    handover = begun(pair)
    handover.others.append(reading)

    async def is_read() -> bool:
        return len(handover.client.tokens) == 1 and await chunks(pair.decode, "pinned") == CHUNKS

    await until(is_read)
    return handover


async def decoding(pair: Pair) -> Handover:
    """The client has some tokens of D."""
    handover = begun(pair)

    async def decodes() -> bool:
        return len(handover.client.tokens) >= SEEN

    await until(decodes)
    return handover


STATES: dict[str, Callable[[Pair], Awaitable[Handover]]] = {
    "queued": queued,
    "gathering": gathering,
    "half read": half_read,
    "read": read,
    "decoding": decoding,
}


async def client_leaves(handover: Handover) -> None:
    await handover.leave()


async def prefill_dies(handover: Handover) -> None:
    handover.pair.prefill.kill()


async def decode_dies(handover: Handover) -> None:
    handover.pair.decode.kill()


EVENTS: dict[str, Callable[[Handover], Awaitable[None]]] = {
    "the client leaves": client_leaves,
    "P dies": prefill_dies,
    "D dies": decode_dies,
}
NEEDS_P = ("queued", "gathering", "half read")


@pytest.mark.parametrize("event", EVENTS)
@pytest.mark.parametrize("state", STATES)
async def test_nothing_is_left_and_no_token_is_wrong(system: System, pair: Pair, state: str, event: str) -> None:
    try:
        handover = await STATES[state](pair)
        await EVENTS[event](handover)
    finally:
        pair.go_on()
    await handover.end_others()
    await asyncio.gather(handover.reading, return_exceptions=True)
    survivors = {each.role: each.url for each in (pair.prefill, pair.decode) if each.is_answering()}
    await wait_until_nothing_is_held(survivors, IDLE_WITHIN_S)
    if event == "P dies" and state not in NEEDS_P:
        assert handover.client.whole, handover.client.failure
    if handover.client.whole:
        await are_right(system, handover.client)
    elif event != "the client leaves":
        assert handover.client.failure, "the client was not told"
    pair.wait()
    await wait_until_nothing_is_held({each.role: each.url for each in (pair.prefill, pair.decode)}, IDLE_WITHIN_S)
    following = Client(pair.router, {**long_request(), "max_tokens": 12})
    await following.read()
    assert following.whole, following.failure
    await are_right(system, following)
