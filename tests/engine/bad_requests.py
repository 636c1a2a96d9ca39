# SPDX-License-Identifier: Apache-2.0
"""Requests that must be refused, and what a refusal looks like."""

import base64
import io
import json
from dataclasses import dataclass
from typing import Any

import httpx
from PIL import Image

from tests.engine import calls
from tests.engine.system import MODEL
from tests.engine.traffic import CHAT, TIMEOUT_S, Json, bytes_part, chat, image_part

COMPLETIONS = "/v1/completions"
LARGEST_SIDE = 1036
"""Of a square image in pixels, after the processor's cap: 1369 patches of 28 pixels, scaled down to at most 1280."""


@dataclass(frozen=True, slots=True)
class Bad:
    """A request and the refusal that it deserves.

    Attributes:
        body: JSON, or the bytes themselves.
        status: of the answer.
        says: what the message contains.
        path: where it is sent.
        anywhere: whether a single server refuses it with the same status.
    """

    body: Json | bytes
    status: int = 400
    says: str = ""
    path: str = CHAT
    anywhere: bool = True


async def send(url: str, bad: Bad) -> httpx.Response:
    """The answer to a request, whatever it is."""
    raw = bad.body if isinstance(bad.body, bytes) else json.dumps(bad.body).encode()
    async with calls.client(timeout=TIMEOUT_S) as client:
        return await client.post(url + bad.path, content=raw, headers={"Content-Type": "application/json"})


def complaints(response: httpx.Response, status: int, says: str = "") -> list[str]:
    """What is wrong with a refusal; empty when it is one of the OpenAI API with this status and message."""
    if response.status_code != status:
        return [f"status {response.status_code}, not {status}: {response.text[:500]}"]
    try:
        error = response.json()["error"]
        message, kind, code = error["message"], error["type"], error["code"]
    except (ValueError, KeyError, TypeError) as reason:
        return [f"{reason!r} in {response.text[:500]}"]
    found = []
    if not (isinstance(message, str) and message and isinstance(kind, str) and kind and code == status):
        found.append(f"no error object of the OpenAI API: {error}")
    elif says not in message:
        found.append(f"{says!r} is not in {message!r}")
    return found


def url_part(url: Any) -> Json:
    """An image by its URL, or by what stands in its place."""
    return {"type": "image_url", "image_url": {"url": url}}


def plain(side: int, colour: int) -> bytes:
    """A square PNG of one colour: few bytes, many image tokens."""
    buffer = io.BytesIO()
    Image.new("RGB", (side, side), (colour, 80, 255 - colour)).save(buffer, format="PNG")
    return buffer.getvalue()


def truncated(data: bytes) -> bytes:
    """The first half."""
    return data[: len(data) // 2]


def _messages(messages: Any) -> Json:
    return {**chat([]), "messages": messages}


def _embeds_part() -> Json:
    return {"type": "image_embeds", "image_embeds": {"image_grid_thw": [1, 2, 2]}, "uuid": "x"}


# Where a status of 500 is expected, that is what vLLM itself makes of the fault.
MEDIA = {
    "broken base64": Bad(chat([url_part("data:image/png;base64,%%%not-base64%%%")])),
    "base64 cut short": Bad(chat([url_part("data:image/png;base64,iVBORw0KGgoAA")])),
    "no image": Bad(chat([bytes_part(b"certainly no image" * 100)])),
    "half an image": Bad(chat([bytes_part(truncated(base64.b64decode(image_part(70)["image_url"]["url"][22:])))])),
    "one of two undecodable": Bad(chat([image_part(71), bytes_part(b"garbage")])),
    "a url of no server": Bad(chat([url_part("http://127.0.0.1:9/x.png")]), status=500),
    "a forbidden domain": Bad(chat([url_part("http://example.com/x.png")]), says="allowed domains", anywhere=False),
    "a scheme that is none": Bad(chat([url_part("gopher://127.0.0.1/x.png")])),
    "a file": Bad(chat([url_part("file:///etc/hostname")]), status=500),
    "more image tokens than context": Bad(
        chat([bytes_part(plain(LARGEST_SIDE, colour)) for colour in range(1, 8)]), says="maximum context length"
    ),
    "options for the processor": Bad(
        chat([bytes_part(plain(3000, 9))], mm_processor_kwargs={"max_pixels": 3000 * 3000}),
        says="mm_processor_kwargs",
    ),
}

TYPES = {
    "messages are text": Bad(_messages("hi")),
    "a message is a number": Bad(_messages([1])),
    "a message without a role": Bad(_messages([{"content": "hi"}])),
    "a role of numbers": Bad(_messages([{"role": 5, "content": "hi"}])),
    "content is a number": Bad(_messages([{"role": "user", "content": 5}])),
    "a part is a number": Bad(_messages([{"role": "user", "content": [5]}])),
    "a part of no known type": Bad(_messages([{"role": "user", "content": [{"type": "smell", "smell": "x"}]}])),
    "an image url is a number": Bad(chat([url_part(5)])),
    "an image url is empty": Bad(chat([url_part("")])),
    "max_tokens is text": Bad(chat([], max_tokens="many")),
    "max_tokens is negative": Bad(chat([], max_tokens=-1)),
    "temperature is text": Bad(chat([], temperature="hot")),
    "temperature is negative": Bad(chat([], temperature=-1)),
    "n is text": Bad(chat([], n="two")),
    "n is zero": Bad(chat([], n=0)),
    "stream is a number": Bad(chat([], stream=7)),
    "model is a number": Bad(chat([]) | {"model": 5}),
    "stop is a number": Bad(chat([], stop=5)),
    "seed is text, beside an image": Bad(chat([image_part(72)], seed="x")),
    "a prompt is an object": Bad({"model": MODEL, "prompt": {"text": "hi"}}, path=COMPLETIONS),
    "no prompt": Bad({"model": MODEL}, path=COMPLETIONS),
}

FORM = {
    "malformed JSON": Bad(b'{"model": '),
    "no JSON object": Bad(b"[]"),
    "nothing": Bad(b""),
    "unknown model": Bad(chat([]) | {"model": "nobody"}, status=404, says="nobody"),
    "unknown model, with an image": Bad(chat([image_part(73)]) | {"model": "nobody"}, status=404, says="nobody"),
    "too many output tokens": Bad(chat([], max_tokens=10**6), says="max_tokens"),
}

NOT_FROM_CLIENTS = {
    name: Bad(body, says=says, anywhere=False)
    for name, body, says in (
        ("ec_transfer_params", chat([], ec_transfer_params={"x": {"handle": {}}}), "ec_transfer_params"),
        ("kv_transfer_params", chat([], kv_transfer_params={"do_remote_prefill": True}), "kv_transfer_params"),
        ("smuggled", chat([], vllm_xargs={"kv_transfer_params": "x"}), "vllm_xargs"),
        ("image_embeds", chat([_embeds_part()]), "image_embeds"),
        ("image_embeds beside an image", chat([image_part(74), _embeds_part()]), "image_embeds"),
        ("prompt_logprobs", chat([], prompt_logprobs=1), "prompt_logprobs"),
    )
}

ALL = {**MEDIA, **TYPES, **FORM, **NOT_FROM_CLIENTS}
