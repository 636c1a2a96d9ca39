# SPDX-License-Identifier: Apache-2.0
"""A fleet behind a router, or one server, whose requests take what a list of prices says.

It does not take that time: it counts it in the metrics and headers in which the real ones tell it. Tokens alone come at
their pace, the second one once another instance has taken over; and prompts of answers of one token take their time, in
which they and the tokens slow each other down.
"""

import asyncio
import base64
import json
import struct
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web
from aiohttp.test_utils import TestServer

from vllm_epd.planner.profile.costs import (
    decode_s,
    encode_s,
    prefill_pairs,
    prefill_s,
    preprocess_s,
    transfer_s,
)
from vllm_epd.planner.profile.media import measure_visual
from vllm_epd.planner.profile.profile import Profile
from vllm_epd.planner.workload.requests import Item, Kind
from vllm_epd.types import Fingerprint, InstanceInfo, Role, RoleSet

MODEL = "priced"
TEMPLATE_TOKENS = 9
TOKENS_PER_WORD = 2
LIMITS = {"max_model_len": 4096}


@dataclass
class PricedFleet:
    """A router at `url`, and behind it one instance for each group of letters.

    Attributes:
        prices: what everything takes.
        folder: of the model, which its cards name.
        groups: such as `("E", "P", "D")`.
        asked: the contents of all requests.
    """

    prices: Profile
    folder: str
    groups: tuple[str, ...]
    url: str = ""
    counted: dict[str, Counter[str]] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)
    _servers: list[TestServer] = field(default_factory=list)
    _instances: dict[str, str] = field(default_factory=dict)
    _running: int = 0
    _prefilling: int = 0
    _context: int = 0

    async def start(self) -> None:
        for letters in self.groups:
            self.counted[letters] = Counter()
            self._instances[letters] = await self._listen(self._instance(letters))
        self.url = await self._listen(self._router())

    async def stop(self) -> None:
        for server in self._servers:
            await server.close()

    async def _listen(self, app: web.Application) -> str:
        server = TestServer(app)
        await server.start_server()
        self._servers.append(server)
        return str(server.make_url("")).rstrip("/")

    def _router(self) -> web.Application:
        app = web.Application(client_max_size=2**30)
        app.router.add_get("/v1/models", self._models)
        app.router.add_get("/epd/instances", self._list)
        app.router.add_post("/v1/chat/completions", self._chat)
        app.router.add_get("/metrics", self._own_metrics)
        return app

    def _instance(self, letters: str) -> web.Application:
        async def info(request: web.Request) -> web.Response:
            own = InstanceInfo(
                letters, "1", self._instances[letters], RoleSet.from_letters(letters), (MODEL,), FINGERPRINT, LIMITS
            )
            return web.json_response(own.to_mapping())

        async def metrics(request: web.Request) -> web.Response:
            lines = [f'{name}{{model_name="{MODEL}"}} {value}' for name, value in self.counted[letters].items()]
            return web.Response(text="\n".join(lines) + "\n")

        app = web.Application()
        app.router.add_get("/v1/models", self._models)
        app.router.add_get("/epd/info", info)
        app.router.add_get("/metrics", metrics)
        return app

    async def _models(self, request: web.Request) -> web.Response:
        return web.json_response({"data": [{"id": MODEL, "root": self.folder, "max_model_len": 4096}]})

    async def _list(self, request: web.Request) -> web.Response:
        return web.json_response({"instances": [{"url": url, "age_s": 0.1} for url in self._instances.values()]})

    async def _own_metrics(self, request: web.Request) -> web.Response:
        return web.Response(text="process_cpu_seconds_total 1.5\n")

    def _of(self, role: Role) -> str:
        return next(letters for letters in self.groups if role in RoleSet.from_letters(letters))

    async def _chat(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        [message] = body["messages"]
        self.asked.append(str(message["content"]))
        items = [
            Item(Kind.IMAGE, *_png_size(part["image_url"]["url"]))
            for part in message["content"]
            if part["type"] == "image_url"
        ]
        words = len(message["content"][-1]["text"].split())
        spans, prompt_tokens = self._count(items, words, body["max_tokens"])
        if body["max_tokens"] == 1:
            await self._prefill(prompt_tokens)
        header = ", ".join(f"{name};dur={1000 * seconds:.4f}" for name, seconds in spans.items())
        response = web.StreamResponse(headers={"Server-Timing": header, "Content-Type": "text/event-stream"})
        await response.prepare(request)
        await self._generate(response, body["max_tokens"], prompt_tokens)
        usage = {"prompt_tokens": prompt_tokens, "completion_tokens": body["max_tokens"]}
        await response.write(_event({"choices": [], "usage": usage}))
        return response

    async def _prefill(self, tokens: int) -> None:
        self._prefilling += 1
        await asyncio.sleep(
            prefill_s(self.prices.prefill, tokens, prefill_pairs(tokens, 0)) * self._slower(self._running)
        )
        self._prefilling -= 1

    def _slower(self, others: int) -> float:
        return 1 + self.prices.overhead.contention * bool(others)

    async def _generate(self, response: web.StreamResponse, tokens: int, prompt_tokens: int) -> None:
        self._running, self._context = self._running + 1, self._context + prompt_tokens
        loop = asyncio.get_running_loop()
        due = loop.time()
        if self._of(Role.PREFILL) != self._of(Role.DECODE):
            link, overhead = next(iter(self.prices.links.values())), self.prices.overhead
            brought = transfer_s(link, prompt_tokens * self.prices.memory.kv_per_token)
            due += overhead.router_s + overhead.decode_s + brought
        for index in range(tokens):
            await response.write(_event({"choices": [{"delta": {"content": f"{index} "}}]}))
            due += decode_s(self.prices.decode, self._running, self._context) * self._slower(self._prefilling)
            if index < tokens - 1:
                await asyncio.sleep(due - loop.time())
        self._running, self._context = self._running - 1, self._context - prompt_tokens

    def _count(self, items: list[Item], words: int, output: int) -> tuple[dict[str, float], int]:
        """Enter a request into the meters; its spans, and the tokens of its prompt."""
        prices, overhead = self.prices, self.prices.overhead
        encoded = [measure_visual(prices.media, item) for item in items]
        media_tokens = sum(item.tokens for item in encoded)
        tokens = TEMPLATE_TOKENS + TOKENS_PER_WORD * words + media_tokens
        link = next(iter(prices.links.values()))
        encoding = encode_s(prices.encode, sum(i.patches for i in encoded), sum(i.pairs for i in encoded)) * bool(items)
        preparing = sum(preprocess_s(prices.preprocess, item) for item in encoded)
        prefilling = prefill_s(prices.prefill, tokens, prefill_pairs(tokens, 0))
        if output == 1:
            prefilling *= self._slower(self._running)
        spans: dict[str, float] = {}
        queue = 0.0
        if self._of(Role.ENCODE) != self._of(Role.PREFILL):
            if items:
                self._enter(Role.ENCODE, prefill=encoding, front=overhead.encode_s + preparing)
                spans["encode"] = encoding + preparing + overhead.encode_s
                queue = transfer_s(link, media_tokens * prices.memory.embedding_per_token)
            encoding = preparing = 0.0
        apart = self._of(Role.PREFILL) != self._of(Role.DECODE)
        front = overhead.prefill_s + preparing
        self._enter(Role.PREFILL, queue, encoding + prefilling, front=front, tokens=1 if apart else output)
        spans["prefill" if apart else "decode"] = queue + encoding + prefilling + front
        if apart:
            bringing = transfer_s(link, tokens * prices.memory.kv_per_token)
            if output > 1:
                self._enter(Role.DECODE, bringing, front=overhead.decode_s, tokens=output - 1)
        spans["total"] = sum(spans.values()) + overhead.router_s * len(spans)
        return spans, tokens

    def _enter(self, role: Role, queue: float = 0.0, prefill: float = 0.0, *, front: float, tokens: int = 0) -> None:
        counted = self.counted[self._of(role)]
        counted["vllm:e2e_request_latency_seconds_count"] += 1
        for name, value in (
            ("vllm:e2e_request_latency_seconds_sum", queue + prefill + front),
            ("vllm:request_queue_time_seconds_sum", queue),
            ("vllm:request_prefill_time_seconds_sum", prefill),
            ("vllm:generation_tokens_total", tokens),
        ):
            counted[name] += value  # type: ignore[assignment]


FINGERPRINT = Fingerprint("c0", "w0", "float32", "p0", "0.32.0")


def _event(chunk: dict[str, Any]) -> bytes:
    return b"data: " + json.dumps(chunk).encode() + b"\n\n"


def _png_size(url: str) -> tuple[int, int]:
    width, height = struct.unpack(">II", base64.b64decode(url.partition(",")[2])[16:24])
    return width, height
