# SPDX-License-Identifier: Apache-2.0
"""P and D driven by hand, as the router drives them, so that the moment between the two is seen."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import Any
from uuid import uuid4

import aiohttp

from tests.bench.cases import MODEL
from tests.bench.client import JSON, check_status, chunks
from tests.bench.errors import BenchError
from tests.bench.handover.cases import NOTHING, TOKENS, WARM_UP, Way, cached, prompts
from tests.bench.handover.results import Handover
from tests.bench.processes import Place
from tests.bench.summary import Summary
from tests.bench.systems.ours import Ours
from tests.bench.systems.stock import KEEP_KV
from vllm_epd.router.capacity import KV_CHUNK_TOKENS
from vllm_epd.types import kv_epoch

COMPLETIONS = "/v1/completions"
OUTPUT_TOKENS = 4


@dataclass(frozen=True, slots=True)
class _Pair:
    """A prefill and a decode instance, and how they are asked to hand over."""

    session: aiohttp.ClientSession
    prefill: str
    decode: str
    epoch: str
    chunk_tokens: int

    async def hand_over(self, prompt: Sequence[int], connector: str) -> tuple[float, float]:
        """Seconds of the prefill, and from P's answer to D's first token."""
        request = {"model": MODEL, "prompt": prompt, "temperature": 0, "ignore_eos": True}
        transfer = uuid4().hex
        if connector == "epd":
            offer: dict[str, Any] = {"epd": {"offer": transfer}}
            if len(prompt) >= self.chunk_tokens:
                hint = {"transfer": transfer, "epoch": self.epoch, "rank": 0}
                await self._post(self.decode + "/epd/kv/expect", hint)
        else:
            offer = KEEP_KV
        start = perf_counter()
        answer = await self._post(self.prefill + COMPLETIONS, {**request, "max_tokens": 1, "kv_transfer_params": offer})
        prefilled = perf_counter()
        kv = answer["kv_transfer_params"]
        if connector == "epd":
            kv = {"epd": {**kv["epd"], "resume": True}}
        first = await self._first_token(
            {**request, "max_tokens": OUTPUT_TOKENS, "stream": True, "kv_transfer_params": kv}
        )
        return prefilled - start, first - prefilled

    async def decode_again(self, prompt: Sequence[int]) -> float:
        """Seconds to the first token of a prompt that D has decoded from before, once P has prefilled as much."""
        request = {"model": MODEL, "prompt": prompt, "temperature": 0, "ignore_eos": True}
        asked = {**request, "max_tokens": OUTPUT_TOKENS, "stream": True}
        await self._first_token(asked)
        await self._post(self.prefill + COMPLETIONS, {**request, "max_tokens": 1})
        start = perf_counter()
        return await self._first_token(asked) - start

    async def _post(self, url: str, body: dict[str, Any]) -> dict[str, Any]:
        async with self.session.post(url, data=json.dumps(body), headers=JSON) as response:
            await check_status(response)
            answer: dict[str, Any] = await response.json()
            return answer

    async def _first_token(self, body: dict[str, Any]) -> float:
        url = self.decode + COMPLETIONS
        async with self.session.post(url, data=json.dumps(body), headers=JSON) as response:
            await check_status(response)
            first = None
            async for _ in chunks(response):
                first = first or perf_counter()
        if first is None:
            raise BenchError(f"{url} generated nothing")
        return first


async def measure_handovers(ways: Sequence[Way], place: Place, say: Callable[[str], None]) -> list[Handover]:
    """All prompt lengths over all ways, one way after the other."""
    found = []
    for way in ways:
        say(f"hand-over, {way.name}: starting")
        system = Ours(f"handover-{way.connector}", "1E1P1D", way.arguments)
        async with system.start(place) as running:
            pair = await _pair(running.session, running.urls)
            for tokens in TOKENS:
                seconds = [await pair.hand_over(prompt, way.connector) for prompt in prompts(tokens)][WARM_UP:]
                prefill, handover = zip(*seconds, strict=True)
                found.append(Handover(way.name, tokens, len(seconds), Summary.of(prefill), Summary.of(handover)))
                if way is ways[0]:
                    least = [await pair.decode_again(prompt) for prompt in prompts(cached(tokens))][WARM_UP:]
                    found.append(Handover(NOTHING, tokens, len(least), Summary.of([0.0]), Summary.of(least)))
    return found


async def _pair(session: aiohttp.ClientSession, urls: Any) -> _Pair:
    async with session.get(urls["P"] + "/epd/info") as response:
        info = await response.json()
    limits = info["limits"]
    return _Pair(session, urls["P"], urls["D"], kv_epoch(info["epoch"]), limits.get(KV_CHUNK_TOKENS, 0))
