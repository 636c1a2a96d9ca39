# SPDX-License-Identifier: Apache-2.0
"""The trace against the real router, whose instances are stubs that take a fixed time for each token of work."""

import asyncio
import time
from base64 import b64decode
from collections.abc import Sequence

import aiohttp
from aiohttp import web

from tests.bench.policies.fleet import (
    CACHE_BLOCKS,
    ENCODE_RATE,
    ENCODERS,
    POOL_ITEMS,
    PREFILL_RATE,
    PREFILL_SEQUENCES,
    PREFILLS,
    Outcome,
    Setting,
)
from tests.bench.policies.trace import Arrival
from tests.fakes.instance import ITEM_BYTES, FakeInstance, Seen, item_hash, items_of
from vllm_epd.router.app import Router
from vllm_epd.router.config import RouterConfig
from vllm_epd.router.costs import Means, chat_tokens, image_size, media_tokens, metadata_tokens
from vllm_epd.router.deadlines import SLO_HEADER
from vllm_epd.router.instances import InstanceRegistry
from vllm_epd.router.media import find_media
from vllm_epd.router.prefixes import BLOCK_TOKENS, Holders, chain

POOL = {"pool_bytes": POOL_ITEMS * ITEM_BYTES, "max_item_bytes": ITEM_BYTES}
ME = ("me", "1")


class PacedInstance(FakeInstance):
    """Does one thing after the other, each for as long as its tokens take; D answers at once."""

    def __init__(self, letters: str, **kwargs: object) -> None:
        super().__init__(letters, **kwargs)
        self._turn = asyncio.Lock()
        self._cache = Holders(CACHE_BLOCKS)

    async def _answer(self, request: web.Request, seen: Seen) -> web.StreamResponse:
        async with self._turn:
            await asyncio.sleep(self._seconds(seen))
        return await super()._answer(request, seen)

    def _seconds(self, seen: Seen) -> float:
        messages = seen.body["messages"]
        if seen.kind == "encode":
            return sum(media_tokens(each, Means()) for each in find_media(messages)) / ENCODE_RATE
        if seen.kind == "prefill":
            return self._prefill_tokens(messages) / PREFILL_RATE
        return 0.0

    def _prefill_tokens(self, messages: list[dict[str, object]]) -> float:
        items = [part["image_embeds"] for message in messages for part in _parts(message) if "image_embeds" in part]
        tokens = chat_tokens(messages) + sum(metadata_tokens(each) or 0 for each in items)
        names = chain("me", messages)
        cached = BLOCK_TOKENS * self._cache.blocks(names, ME)
        self._cache.note(names, ME)
        return max(1.0, tokens - cached)

    def _described(self, seen: Seen) -> dict[str, object]:
        described = super()._described(seen)
        for (_, data), media in zip(items_of(seen.body), find_media(seen.body["messages"]), strict=True):
            width, height = _size(media.data.text)
            described[item_hash(data)]["metadata"] = {"image_grid_thw": [1, height // 14, width // 14]}
        return described


async def replay(trace: Sequence[Arrival], setting: Setting) -> Outcome:
    """Serve the trace in real time."""
    config = RouterConfig(port=0, token=None, policy=setting.policy, order=setting.order)
    router = Router(config)
    fleet = [PacedInstance("E", limits=POOL) for _ in range(ENCODERS)]
    fleet += [PacedInstance("P", limits={"max_num_seqs": PREFILL_SEQUENCES}) for _ in range(PREFILLS)]
    fleet.append(PacedInstance("D"))
    try:
        for each in fleet:
            await each.start()
        async with (
            router.running("127.0.0.1", 0) as port,
            aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session,
        ):
            keep = asyncio.create_task(_keep_alive(router.parts.services.registry, fleet))
            start = time.monotonic()
            ttfts = await asyncio.gather(*(_ask(session, f"http://127.0.0.1:{port}", each, start) for each in trace))
            keep.cancel()
    finally:
        for each in fleet:
            await each.stop()
    return Outcome(setting, tuple(ttfts))


async def _keep_alive(registry: InstanceRegistry, fleet: Sequence[FakeInstance]) -> None:
    while True:
        for each in fleet:
            registry.register(each.info())
        await asyncio.sleep(1.0)


async def _ask(session: aiohttp.ClientSession, url: str, each: Arrival, start: float) -> float:
    """The time to the first piece of the answer; that of a request that fails is an error."""
    await asyncio.sleep(max(0.0, start + each.at - time.monotonic()))
    began = time.monotonic()
    headers = {"Content-Type": "application/json", SLO_HEADER: str(each.slo_s * 1000)}
    async with session.post(f"{url}/v1/chat/completions", data=each.body, headers=headers) as answer:
        answer.raise_for_status()
        await answer.content.readany()
        ttft = time.monotonic() - began
        await answer.read()
        return ttft


def _parts(message: dict[str, object]) -> list[dict[str, object]]:
    content = message["content"]
    return content if isinstance(content, list) else []


def _size(url: str) -> tuple[int, int]:
    size = image_size(b64decode(url.partition(",")[2]))
    assert size is not None
    return size
