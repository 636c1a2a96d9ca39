# SPDX-License-Identifier: Apache-2.0
"""The stages driven by hand, past the router."""

from dataclasses import dataclass
from typing import Any
from uuid import uuid4

from tests.engine import calls
from tests.engine.system import MODEL, System
from tests.engine.traffic import CHAT, TIMEOUT_S, Answer, Json, ask


@dataclass(frozen=True, slots=True)
class Encoded:
    """What an encode instance says of one item."""

    key: str
    modality: str
    metadata: Json
    handle: Json


async def post(url: str, body: Json) -> Json:
    """POST JSON, get JSON."""
    async with calls.client(timeout=TIMEOUT_S) as client:
        response = await client.post(url + CHAT, json=body)
    assert response.status_code == 200, response.text
    answer: Json = response.json()
    return answer


async def encode(system: System, part: Json, url: str | None = None) -> Encoded:
    """Have one media part encoded and offered."""
    body = {
        "model": MODEL,
        "messages": [{"role": "user", "content": [part]}],
        "max_tokens": 1,
        "ec_transfer_params": {"epd": {"offer": True}},
    }
    answer = await post(url or system.instances("encode")[0], body)
    ((key, item),) = answer["ec_transfer_params"].items()
    return Encoded(key, item["modality"], item["metadata"], item["handle"])


def swapped(shown: Encoded, other: Encoded) -> Encoded:
    """The placeholder of `shown` with the embedding of `other`."""
    return Encoded(other.key, shown.modality, shown.metadata, other.handle)


def with_items(request: Json, items: list[Encoded]) -> Json:
    """`request` with metadata-only items before its text."""
    parts: list[Any] = [
        {"type": f"{item.modality}_embeds", f"{item.modality}_embeds": item.metadata, "uuid": item.key}
        for item in items
    ]
    content = [*parts, *request["messages"][0]["content"]]
    return {
        **request,
        "messages": [{"role": "user", "content": content}],
        "ec_transfer_params": {item.key: {"handle": item.handle} for item in items},
    }


async def prefill(system: System, request: Json, items: list[Encoded]) -> Json:
    """P's answer with where the KV cache is."""
    offer = {"epd": {"offer": uuid4().hex}}
    body = {**with_items(request, items), "max_tokens": 1, "kv_transfer_params": offer}
    return await post(system.instances("prefill")[0], body)


async def prefill_and_decode(system: System, request: Json, items: list[Encoded]) -> Answer:
    """D's answer after P."""
    answer = await prefill(system, request, items)
    body = {**with_items(request, items), "kv_transfer_params": answer["kv_transfer_params"]}
    return await ask(system.instances("decode")[0], body)
