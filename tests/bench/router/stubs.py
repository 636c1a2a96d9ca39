# SPDX-License-Identifier: Apache-2.0
"""Instances that answer at once: `python -m tests.bench.router.stubs ROUTER PORT_OF_E PORT_OF_P PORT_OF_D`.

They register at the router, for each KV connector under its name as a model, and stay until they are stopped.
"""

import asyncio
import json
import re
import sys
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import suppress
from functools import partial
from typing import Any

import aiohttp

from tests.bench.client import check_status
from tests.bench.processes import HOST
from tests.bench.router.cases import EPD, NIXL, STREAM_TOKENS
from tests.bench.router.http import Message, Server
from vllm_epd.types import Fingerprint, InstanceInfo, RoleSet, kv_epoch

HEARTBEAT_S = 1.0
_TRANSFER = re.compile(rb'"offer":"([^"]+)"')
_JSON_HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n"
_STREAM_HEAD = (
    b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\ntransfer-encoding: chunked\r\n\r\n"
)
_STREAMED = b'"stream":true', b'"stream": true'

Answer = Callable[[Message, asyncio.Transport], None]


def encode(message: Message, transport: asyncio.Transport) -> None:
    """E: one embedding, whatever the image."""
    transport.write(ENCODED)


def prefill(message: Message, transport: asyncio.Transport) -> None:
    """P: one token, and the KV cache that was asked for."""
    offer = _TRANSFER.search(message.body)
    if message.head.startswith(b"POST /epd/"):
        transport.write(TOLD)
    elif offer is None:
        transport.write(HANDED_OVER)
    else:
        transport.write(_whole(OFFERED.replace(_PLACE, offer[1])))


def decode(message: Message, transport: asyncio.Transport) -> None:
    """D: a whole answer, or a stream in which each event is a write of its own."""
    if message.head.startswith(b"POST /epd/"):
        transport.write(TOLD)
    elif any(each in message.body for each in _STREAMED):
        transport.write(_STREAM_HEAD)
        _write_each(transport, 0)
    else:
        transport.write(GENERATED)


def _write_each(transport: asyncio.Transport, number: int) -> None:
    transport.write(EVENTS[number])
    if number + 1 < len(EVENTS):
        asyncio.get_running_loop().call_soon(_write_each, transport, number + 1)


def _json(value: Any) -> bytes:
    body = json.dumps(value, separators=(",", ":")).encode()
    return _whole(body)


def _whole(body: bytes) -> bytes:
    return _JSON_HEAD % len(body) + body


def _answer(finish: str, **fields: Any) -> Any:
    choice = {"index": 0, "message": {"role": "assistant", "content": "word "}, "logprobs": None}
    return {
        "id": "chatcmpl-stub",
        "object": "chat.completion",
        "created": 1700000000,
        "model": "stub",
        "choices": [{**choice, "finish_reason": finish}],
        "usage": {"prompt_tokens": 256, "completion_tokens": 1, "total_tokens": 257},
        "ec_transfer_params": None,
        "kv_transfer_params": None,
        **fields,
    }


def _events() -> list[bytes]:
    common = {"id": "chatcmpl-stub", "object": "chat.completion.chunk", "created": 1700000000, "model": "stub"}
    deltas: list[Any] = [{"role": "assistant", "content": ""}, *({"content": "word "},) * STREAM_TOKENS]
    ends = [None] * STREAM_TOKENS + ["stop"]
    choices = [{"index": 0, "delta": delta, "finish_reason": end} for delta, end in zip(deltas, ends, strict=True)]
    written = [json.dumps({**common, "choices": [choice]}, separators=(",", ":")) for choice in choices]
    events = [f"data: {each}\n\n".encode() for each in (*written, "[DONE]")]
    return [b"%x\r\n%b\r\n" % (len(event), event) for event in events] + [b"0\r\n\r\n"]


_PLACE = b"<transfer>"
_HANDLE = {"version": 2, "key": "item", "lease": "lease", "epoch": "e", "rank": 0, "nbytes": 4096}
_ITEM = {"item_indices": [0], "modality": "image", "metadata": {"image_grid_thw": [1, 32, 32]}, "handle": _HANDLE}
_NIXL_KV = {
    "do_remote_prefill": True,
    "do_remote_decode": False,
    "remote_block_ids": [list(range(16))],
    "remote_engine_id": "p",
    "remote_request_id": "p",
    "remote_host": HOST,
    "remote_port": 5600,
}
_EPD_KV = {"epd": {"transfer": _PLACE.decode(), "epoch": kv_epoch("p"), "rank": 0, "first": 7, "tokens": 256}}

TOLD = _json({})
ENCODED = _json(_answer("length", ec_transfer_params={"item": _ITEM}))
HANDED_OVER = _json(_answer("length", kv_transfer_params=_NIXL_KV))
OFFERED = json.dumps(_answer("length", kv_transfer_params=_EPD_KV)).encode()
GENERATED = _json(_answer("stop"))
EVENTS = _events()
ANSWERS: dict[str, Answer] = {"encode": encode, "prefill": prefill, "decode": decode}


async def main(router: str, *ports: str) -> None:
    """Listen, and be registered until the end."""
    loop = asyncio.get_running_loop()
    for answer, port in zip(ANSWERS.values(), ports, strict=True):
        await loop.create_server(partial(Server, answer), HOST, int(port))
    urls = {role: f"http://{HOST}:{port}" for role, port in zip(ANSWERS, ports, strict=True)}
    infos = [_info(kv, role, url) for kv in (NIXL, EPD) for role, url in urls.items()]
    async for _ in _beats():
        with suppress(aiohttp.ClientError):  # the router is not there yet, or not any more
            await _register(router, infos)


async def _register(router: str, infos: Sequence[InstanceInfo]) -> None:
    async with aiohttp.ClientSession() as session:
        for info in infos:
            async with session.post(f"{router}/epd/instances", json=info.to_mapping()) as answer:
                await check_status(answer)


async def _beats() -> AsyncIterator[None]:
    while True:
        yield
        await asyncio.sleep(HEARTBEAT_S)


def _info(kv: str, role: str, url: str) -> InstanceInfo:
    return InstanceInfo(
        instance_id=f"{role}-{kv}",
        epoch=role[0],
        url=url,
        roles=RoleSet.parse(role),
        models=(kv,),
        fingerprint=Fingerprint("c", "w", "bfloat16", "p", "0.32.0"),
        limits={"max_model_len": 4096, **({"resume": 1} if kv == EPD else {})},
        kv="" if role == "encode" else kv,
        kv_agents=("tcp://127.0.0.1:1",) if kv == EPD and role == "prefill" else (),
    )


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
