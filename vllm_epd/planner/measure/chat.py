# SPDX-License-Identifier: Apache-2.0
"""One request to the OpenAI chat API, timed."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from time import perf_counter
from typing import Any

import aiohttp
from numpy.random import Generator

from vllm_epd.errors import ConfigError
from vllm_epd.planner.measure.pictures import picture_url

WORDS = ("red", "boat", "harbour", "white", "birds", "green", "hills", "garden", "bridge", "small", "dog", "street")
PATH = "/v1/chat/completions"
SHOWN = 500


@dataclass(frozen=True, slots=True)
class Shot:
    """What is asked.

    Attributes:
        words: of text.
        images: sizes, width and height in pixels.
        output_tokens: to be generated.
    """

    words: int
    images: tuple[tuple[int, int], ...] = ()
    output_tokens: int = 1


@dataclass(frozen=True, slots=True)
class Answer:
    """What came back, and when, in seconds.

    Attributes:
        ttft_s: from sending until the first token.
        total_s: until the last one.
        moments: when each piece of the answer came, by one clock for all requests.
        prompt_tokens: as the server counts them.
        spans: by name, of the `Server-Timing` header; empty without one.
    """

    ttft_s: float
    total_s: float
    moments: tuple[float, ...]
    prompt_tokens: int
    spans: Mapping[str, float]


def chat_body(model: str, shot: Shot, rng: Generator) -> bytes:
    """The request as JSON; its text and its pictures are like no other's."""
    content: list[dict[str, Any]] = [
        {"type": "image_url", "image_url": {"url": picture_url(rng, *size)}} for size in shot.images
    ]
    content.append({"type": "text", "text": " ".join(rng.choice(WORDS, shot.words))})
    body = {
        "model": model,
        "messages": [{"role": "user", "content": content}],
        "max_tokens": shot.output_tokens,
        "temperature": 0,
        "ignore_eos": True,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    return json.dumps(body).encode()


async def ask(
    session: aiohttp.ClientSession, url: str, body: bytes, begun: Callable[[], None] = lambda: None
) -> Answer:
    """Send a chat request and read all of its stream; `begun` hears of each piece.

    Raises:
        ConfigError: it is not answered as it should be.
    """
    start = perf_counter()
    moments: list[float] = []
    usage: dict[str, Any] = {}
    try:
        async with session.post(url + PATH, data=body, headers={"Content-Type": "application/json"}) as response:
            if response.status != 200:
                text = (await response.text())[:SHOWN]
                raise ConfigError(f"{url} answers {response.status} to a request of the profile: {text}")
            spans = read_spans(response.headers.get("Server-Timing", ""))
            async for line in response.content:
                if not line.startswith(b"data: {"):
                    continue
                chunk = json.loads(line[len(b"data: ") :])
                if any(choice["delta"].get("content") for choice in chunk.get("choices", ())):
                    moments.append(perf_counter())
                    begun()
                usage = chunk.get("usage") or usage
    except (aiohttp.ClientError, TimeoutError) as error:
        raise ConfigError(f"{url} does not answer a request of the profile: {error!r}") from error
    if not moments or not usage:
        raise ConfigError(f"{url} generated nothing for a request of the profile; see its log")
    return Answer(moments[0] - start, perf_counter() - start, tuple(moments), int(usage["prompt_tokens"]), spans)


def read_spans(header: str) -> dict[str, float]:
    """Seconds by name, of a `Server-Timing` header."""
    spans = {}
    for metric in filter(None, (part.strip() for part in header.split(","))):
        name, *parameters = metric.split(";")
        for parameter in parameters:
            key, _, value = parameter.strip().partition("=")
            if key == "dur":
                spans[name] = float(value) / 1000
    return spans
