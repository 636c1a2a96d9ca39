# SPDX-License-Identifier: Apache-2.0
"""Requests, and answers in a form that can be compared."""

import asyncio
import base64
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from tests.engine import calls
from tests.engine.system import MODEL
from vllm_epd.demo import demo_image

CHAT = "/v1/chat/completions"
SIZES = ((448, 448), (640, 360), (100, 300), (800, 600))
TIMEOUT_S = 240.0
Json = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Answer:
    """Tokens and their log probabilities, as far as the client sees them."""

    tokens: tuple[str, ...]
    logprobs: tuple[float, ...]
    text: str
    finish_reason: str
    usage: Json = field(compare=False)


def image_part(seed: int, size: tuple[int, int] = SIZES[0]) -> Json:
    """One image as a content part."""
    return bytes_part(demo_image(seed, *size))


def bytes_part(data: bytes, media_type: str = "image/png") -> Json:
    """Any bytes as an image part."""
    url = f"data:{media_type};base64,{base64.b64encode(data).decode()}"
    return {"type": "image_url", "image_url": {"url": url}}


def video_part(seed: int, frames: int, size: tuple[int, int]) -> Json:
    """A video as a content part: so many pictures, one after the other."""
    pictures = [base64.b64encode(demo_image(seed + frame, *size)).decode() for frame in range(frames)]
    return {"type": "video_url", "video_url": {"url": f"data:video/jpeg;base64,{','.join(pictures)}"}}


def chat(parts: Sequence[Json], text: str = "Describe.", **fields: Any) -> Json:
    """A chat request that asks for log probabilities of token ids."""
    return {
        "model": MODEL,
        "messages": [{"role": "user", "content": [*parts, {"type": "text", "text": text}]}],
        "max_tokens": 12,
        "temperature": 0,
        "logprobs": True,
        "top_logprobs": 2,
        "return_tokens_as_token_ids": True,
        **fields,
    }


def images_of(request: Json) -> list[Json]:
    """The image parts of a chat request."""
    return [part for part in request["messages"][0]["content"] if part["type"] == "image_url"]


def mixed_requests() -> list[Json]:
    """Sixteen: no image, 1, 2 and 4 distinct ones of different sizes; greedy and seeded; streaming and not."""
    requests = []
    for index in range(16):
        count = (0, 1, 2, 4)[index % 4]
        parts = [image_part(10 * index + item, SIZES[(index + item) % len(SIZES)]) for item in range(count)]
        sampling: Json = {} if index < 8 else {"temperature": 0.8, "seed": index}
        stream: Json = {"stream": True, "stream_options": {"include_usage": True}} if index % 8 >= 4 else {}
        requests.append(chat(parts, f"Describe item {index}.", **sampling, **stream))
    return requests


async def ask(url: str, request: Json) -> Answer:
    """Send a chat request and read its answer, streamed or whole."""
    async with calls.client(timeout=TIMEOUT_S) as client:
        if not request.get("stream"):
            response = await client.post(url + CHAT, json=request)
            assert response.status_code == 200, response.text
            body = response.json()
            choice = body["choices"][0]
            return _answer(
                [choice["logprobs"]], choice["message"]["content"] or "", choice["finish_reason"], body["usage"]
            )
        async with client.stream("POST", url + CHAT, json=request) as response:
            if response.status_code != 200:
                raise AssertionError((await response.aread()).decode())
            return _from_events([line async for line in response.aiter_lines()])


async def ask_all(url: str, requests: Iterable[Json]) -> list[Answer]:
    """The answers to requests that are sent all at once."""
    return await asyncio.gather(*(ask(url, request) for request in requests))


async def ask_in_turn(url: str, requests: Iterable[Json]) -> list[Answer]:
    """The answers to requests of which each is sent when the one before it is answered."""
    return [await ask(url, request) for request in requests]


def _from_events(lines: Sequence[str]) -> Answer:
    data = [line.removeprefix("data: ") for line in lines if line.startswith("data: ")]
    assert data[-1] == "[DONE]"
    chunks = [json.loads(item) for item in data[:-1]]
    choices = [chunk["choices"][0] for chunk in chunks if chunk["choices"]]
    return _answer(
        [choice["logprobs"] for choice in choices if choice.get("logprobs")],
        "".join(choice["delta"].get("content") or "" for choice in choices),
        next(choice["finish_reason"] for choice in choices if choice.get("finish_reason")),
        next(chunk["usage"] for chunk in chunks if chunk.get("usage")),
    )


def _answer(logprobs: Sequence[Json], text: str, finish_reason: str, usage: Json) -> Answer:
    entries = [entry for part in logprobs for entry in part["content"]]
    return Answer(
        tuple(entry["token"] for entry in entries),
        tuple(entry["logprob"] for entry in entries),
        text,
        finish_reason,
        usage,
    )
