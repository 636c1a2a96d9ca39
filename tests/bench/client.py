# SPDX-License-Identifier: Apache-2.0
"""The client of every system: one request, timed from its first byte."""

import json
from collections.abc import AsyncIterator
from dataclasses import dataclass
from time import perf_counter
from typing import Any

import aiohttp

from tests.bench.cases import OUTPUT_TOKENS
from tests.bench.errors import BenchError

CHAT = "/v1/chat/completions"
TIMEOUT = aiohttp.ClientTimeout(total=300.0)
JSON = {"Content-Type": "application/json"}
STREAMED = {"max_tokens": OUTPUT_TOKENS, "stream": True, "stream_options": {"include_usage": True}}
"""What asks for the output that is measured."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What came back for one request, and when: seconds since its first byte was sent."""

    ttft_s: float
    total_s: float
    text: str
    prompt_tokens: int


def open_session() -> aiohttp.ClientSession:
    """A session with a new connection for each request, since a kept one may be closed under the next."""
    return aiohttp.ClientSession(timeout=TIMEOUT, connector=aiohttp.TCPConnector(force_close=True))


async def ask(session: aiohttp.ClientSession, url: str, body: bytes) -> dict[str, Any]:
    """The whole answer to a chat request that is not streamed."""
    async with session.post(url + CHAT, data=body, headers=JSON) as response:
        await check_status(response)
        answer: dict[str, Any] = await response.json()
        return answer


async def stream(session: aiohttp.ClientSession, url: str, body: bytes, since: float | None = None) -> Answer:
    """The streamed answer to a chat request; its clock starts now, or started at `since`."""
    start = perf_counter() if since is None else since
    first, text, usage = None, "", {}
    async with session.post(url + CHAT, data=body, headers=JSON) as response:
        await check_status(response)
        async for chunk in chunks(response):
            piece = "".join(choice["delta"].get("content") or "" for choice in chunk.get("choices", ()))
            if piece and first is None:
                first = perf_counter()
            text += piece
            usage = chunk.get("usage") or usage
    end = perf_counter()
    if first is None or usage.get("completion_tokens") != OUTPUT_TOKENS:
        raise BenchError(f"{url} answered {text!r} with usage {usage}, expected {OUTPUT_TOKENS} tokens")
    return Answer(first - start, end - start, text, usage["prompt_tokens"])


async def chunks(response: aiohttp.ClientResponse) -> AsyncIterator[dict[str, Any]]:
    """The chunks of a streamed answer, each as it comes; BenchError when it fails in mid-stream."""
    async for line in response.content:
        if line.startswith(b"data: {"):
            chunk = json.loads(line[len(b"data: ") :])
            if "error" in chunk:
                raise BenchError(f"{response.url} failed in mid-stream: {chunk['error']}")
            yield chunk


async def check_status(response: aiohttp.ClientResponse) -> None:
    """BenchError with what was answered, unless that is 200."""
    if response.status != 200:
        raise BenchError(f"{response.url} answered {response.status}: {(await response.text())[:1000]}")
