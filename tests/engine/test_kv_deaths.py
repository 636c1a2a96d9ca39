# SPDX-License-Identifier: Apache-2.0
"""P or D is killed, or the client leaves, in every state of a hand-over of KV caches."""

import asyncio
import random
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from uuid import uuid4

import pytest

from tests.engine.gauges import WAITING, gauge, pool, until, wait_until_nothing_is_held
from tests.engine.mortals import Mortal, mortals, router_process
from tests.engine.stages import post
from tests.engine.streams import Client, are_right
from tests.engine.system import System
from tests.engine.traffic import Json, chat

pytestmark = [pytest.mark.engine, pytest.mark.slow]

LEASE_S = 5
"""After which nobody waits for what has died: of what is offered, and of a read that was granted."""
IDLE_WITHIN_S = LEASE_S + 10.0
PROMPT_TOKENS = 3500
"""Of a long prompt: four chunks."""
CHUNKS = 4
ANSWER_TOKENS = 200
SEEN = 5
OTHER_TOKENS = 2000
"""Of the prompt of somebody else: beside it, P's KV caches have room for a part of a long prompt."""
POOL_BYTES = 24 * 2**20
"""P's, for one long prompt, but not for two."""
TIGHT = ("--num-gpu-blocks-override", "34", "--no-scheduler-reserve-full-isl", "--max-num-batched-tokens", "256")
"""P's KV caches hold 33 blocks of 128 tokens, and it begins with prompts that do not fit, in several steps a chunk."""
LIMITS = ("--epd-lease-s", str(LEASE_S), "--epd-kv-lease-s", str(LEASE_S), "--epd-fetch-timeout-s", str(LEASE_S))
OPTIONS = {
    "prefill": (*LIMITS, "--epd-kv-pool-bytes", str(POOL_BYTES), *TIGHT),
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


def digits(count: int) -> str:
    """A text that nobody has seen yet; each digit is a token."""
    return "".join(random.choices("0123456789", k=count))


def long_request() -> Json:
    """A stream after a long prompt."""
    return chat([], digits(PROMPT_TOKENS), max_tokens=ANSWER_TOKENS, stream=True, ignore_eos=True)


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


async def occupied(instance: Mortal, text: str) -> asyncio.Task[None]:
    """Somebody of whom the router does not know has an instance generate to the end of the context."""
    client = Client(instance.url, chat([], text, max_tokens=None, stream=True, ignore_eos=True))
    reading = asyncio.create_task(client.read())

    async def generates() -> bool:
        return len(client.tokens) >= SEEN

    await until(generates)
    return reading


async def half_way(pair: Pair, instance: Mortal, count: str) -> Handover:
    """`count` of an instance has grown, and P has no room to go on to the end as long as somebody else is there."""
    before = await chunks(instance, count)
    other = await occupied(pair.prefill, digits(OTHER_TOKENS))
    handover = begun(pair)
    handover.others.append(other)

    async def has_some() -> bool:
        return await chunks(instance, count) > before

    await until(has_some)
    assert await chunks(instance, count) - before < CHUNKS, "P is done"
    return handover


async def gathering(pair: Pair) -> Handover:
    """P has saved a part of the chunks, and D, which stands still, has read none."""
    pair.decode.freeze()
    return await half_way(pair, pair.prefill, "encoded")


async def half_read(pair: Pair) -> Handover:
    """D has a part of the chunks, and P has not saved all of them."""
    return await half_way(pair, pair.decode, "fetched")


async def read(pair: Pair) -> Handover:
    """D has all chunks, and decodes for somebody of whom the router does not know: it would wait for D otherwise."""
    other = await occupied(pair.decode, "Describe.")
    handover = begun(pair)
    handover.others.append(other)

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
