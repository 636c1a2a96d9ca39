# SPDX-License-Identifier: Apache-2.0
"""A stub of a vLLM instance: a real HTTP server that records what it is asked and answers by its roles.

Its text depends on the prompt alone: text as it is, each item as `<hash of its data>`, whether the item comes
as data or as metadata under that hash. So every topology must give the text that one whole instance gives.

An encoder leases what it has encoded; who prefills reads it, which fails if it is not leased, and acknowledges.
"""

import asyncio
import hashlib
import json
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web

from vllm_epd.types import Fingerprint, InstanceInfo, RoleSet

FINGERPRINT = Fingerprint("c0", "w0", "bfloat16", "p0", "0.32.0")
ITEM_BYTES = 100

#: Those that listen, by instance id: where a consumer finds the producer of an embedding.
_RUNNING: dict[str, "FakeInstance"] = {}


@dataclass
class Seen:
    """One request as it arrived.

    `outcome` is `running`, `answered` or `aborted`.
    """

    path: str
    body: dict[str, Any]
    size: int
    headers: Mapping[str, str]
    outcome: str = "running"

    @property
    def request_id(self) -> str:
        return self.headers.get("X-Request-Id", "")

    @property
    def kind(self) -> str:
        """`encode`, `prefill` or `generate`."""
        if (self.body.get("ec_transfer_params") or {}).get("epd", {}).get("offer"):
            return "encode"
        kv = self.body.get("kv_transfer_params") or {}
        return "prefill" if kv.get("do_remote_decode") or "offer" in kv.get("epd", {}) else "generate"


@dataclass
class Behaviour:
    """How an instance departs from answering at once and well.

    Attributes:
        status: answer with this status instead of 200.
        body: together with it, this body.
        headers: and these headers.
        hold: wait for this event before answering.
        silent: begin a stream of tokens, but wait for this event before the first of them.
        gate: wait for this event after the first streamed word.
        break_after: cut the connection after so many events of a stream, or before a whole answer if 0.
        change: edit a whole answer before it is sent.
        words: what to generate, instead of the prompt's words.
        first_event: begin the stream with this event.
        unheard: encode, but wait for this event before saying so.
        lease_status: answer requests for leases with this status.
        lease_hold: grant a lease, but wait for this event before saying so.
        release_hold: wait for this event before taking a lease back.
        kv_status: answer what is told of KV caches with this status.
        kv_hold: wait for this event before that.
    """

    status: int = 200
    body: bytes | dict[str, Any] = b""
    headers: dict[str, str] = field(default_factory=dict)
    hold: asyncio.Event | None = None
    silent: asyncio.Event | None = None
    gate: asyncio.Event | None = None
    break_after: int | None = None
    change: Callable[[dict[str, Any]], None] = lambda answer: None
    words: list[str] | None = None
    first_event: bytes = b""
    unheard: asyncio.Event | None = None
    lease_status: int = 200
    lease_hold: asyncio.Event | None = None
    release_hold: asyncio.Event | None = None
    kv_status: int = 200
    kv_hold: asyncio.Event | None = None


class FakeInstance:
    """An instance with the roles of `letters`, such as `E` or `PD`.

    Attributes:
        leases: the key that each live lease keeps.
        lease_calls: requests for leases.
        release_calls: requests that end them.
        forget_calls: requests that end what was offered under a name.
        kv_calls: what was told of KV caches, with the last part of the path.
        overruns: bytes that were leased or being encoded, whenever these were more than `pool_bytes` of the limits.
        peak: the most that these have been.
    """

    def __init__(
        self,
        letters: str,
        *,
        models: tuple[str, ...] = ("tiny",),
        fingerprint: Fingerprint = FINGERPRINT,
        limits: dict[str, int] | None = None,
        item_bytes: int = ITEM_BYTES,
        epoch: str = "1",
        agents: tuple[str, ...] = (),
        kv: str = "",
        kv_agents: tuple[str, ...] = (),
        kv_shards: int = 1,
    ) -> None:
        self.epoch = epoch
        self.leases: dict[str, str] = {}
        self.lease_calls: list[Seen] = []
        self.release_calls: list[Seen] = []
        self.forget_calls: list[Seen] = []
        self._offers: dict[str, list[str]] = {}
        self.overruns: list[int] = []
        self.peak = 0
        self._item_bytes = item_bytes
        self._agents = agents
        self._kv = kv
        self._kv_agents = kv_agents
        self._kv_shards = kv_shards
        self.kv_calls: list[tuple[str, Seen]] = []
        self._stored: dict[str, int] = {}
        self._encoding: list[str] = []
        self._landed: set[str] = set()
        self._granted = 0
        self.roles = RoleSet.from_letters(letters)
        self.seen: list[Seen] = []
        self.does = Behaviour()
        self.arrived = asyncio.Event()
        self._models = models
        self._fingerprint = fingerprint
        self._limits = limits or {}
        self._runner: web.AppRunner | None = None
        self.port = 0

    async def start(self) -> None:
        app = web.Application(client_max_size=2**30)
        app.router.add_post("/v1/chat/completions", self._handle)
        app.router.add_post("/v1/completions", self._handle)
        app.router.add_post("/epd/leases", self._lease)
        app.router.add_post("/epd/leases/release", self._release)
        app.router.add_post("/epd/leases/forget", self._forget)
        app.router.add_post("/epd/kv/{what}", self._told_of_kv)
        self._runner = web.AppRunner(app, handler_cancellation=True, access_log=None, shutdown_timeout=0.1)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", self.port).start()
        self.port = self._runner.addresses[0][1]
        _RUNNING[self.instance_id] = self

    async def stop(self) -> None:
        """Stop listening, so that connections are refused; `start` brings it back on the same port."""
        if self._runner is not None:
            del _RUNNING[self.instance_id]
            await self._runner.cleanup()
            self._runner = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def instance_id(self) -> str:
        return f"127.0.0.1:{self.port}"

    def info(self, epoch: str | None = None) -> InstanceInfo:
        return InstanceInfo(
            self.instance_id,
            self.epoch if epoch is None else epoch,
            self.url,
            self.roles,
            self._models,
            self._fingerprint,
            self._limits,
            self._agents,
            self._kv,
            self._kv_agents,
            self._kv_shards,
        )

    def restart(self, epoch: str) -> None:
        """Be another start of this instance, which holds nothing."""
        self.epoch = epoch
        self.leases.clear()
        self.evict()

    def evict(self) -> None:
        """Make room: keep no embedding that is not leased."""
        self._stored = {key: size for key, size in self._stored.items() if key in self.leases.values()}

    def bodies(self, kind: str) -> list[dict[str, Any]]:
        """The bodies of the requests of one kind."""
        return [seen.body for seen in self.seen if seen.kind == kind]

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        raw = b"".join([chunk async for chunk in request.content.iter_any()])
        seen = Seen(request.path, json.loads(raw), len(raw), request.headers)
        self.seen.append(seen)
        self.arrived.set()
        try:
            with self._at_work(seen):
                response = await self._answer(request, seen)
        except (asyncio.CancelledError, ConnectionResetError):
            seen.outcome = "aborted"
            raise
        seen.outcome = "answered"
        return response

    async def _answer(self, request: web.Request, seen: Seen) -> web.StreamResponse:
        if self.does.hold is not None:
            await self.does.hold.wait()
        if self.does.status != 200:
            return self._refusal(self.does.status, self.does.body)
        if self.does.break_after == 0:
            request.transport.abort()
            return web.Response()
        if problem := self._problem(seen):
            return self._refusal(400, problem)
        if not self._read(seen):
            return self._refusal(500, error_body("embedding lost"))
        if seen.body.get("stream"):
            return await self._stream(request, seen)
        answer = self._whole(seen)
        if self.does.unheard is not None and seen.kind == "encode":
            await self.does.unheard.wait()
        self.does.change(answer)
        return web.json_response(answer)

    def _refusal(self, status: int, body: bytes | dict[str, Any]) -> web.Response:
        if isinstance(body, dict):
            return web.json_response(body, status=status, headers=self.does.headers)
        return web.Response(body=body, status=status, headers=self.does.headers)

    def _problem(self, seen: Seen) -> dict[str, Any] | None:
        """What a real instance without a tower or a language model would refuse."""
        role = {"encode": "encode", "prefill": "prefill", "generate": "decode"}[seen.kind]
        if role not in str(self.roles).split("+"):
            return error_body(f"this instance does not {role}")
        if any(not kind.endswith("_embeds") for kind, _ in items_of(seen.body)) and not self.roles.encode:
            return error_body("At most 0 image(s) may be provided in one prompt.")
        return None

    def _whole(self, seen: Seen) -> dict[str, Any]:
        answer = _answer(seen, [_choice(seen, index, self._words(seen, index)) for index in _indices(seen)])
        if seen.kind == "encode" or (seen.body.get("ec_transfer_params") or {}).get("epd"):
            answer["ec_transfer_params"] = self._described(seen)
        if seen.kind == "prefill":
            answer["kv_transfer_params"] = self._handed_over(seen)
        return answer

    def _described(self, seen: Seen) -> dict[str, Any]:
        entries: dict[str, Any] = {}
        for index, (kind, data) in enumerate(items_of(seen.body)):
            entry = entries.setdefault(item_hash(data), {"item_indices": [], "modality": kind, "metadata": grid(data)})
            entry["item_indices"].append(index)
            if seen.kind == "encode":
                lease = f"{seen.request_id}:{self._granted}"
                entry["handle"] = self._grant(item_hash(data), lease)
                self._offers.setdefault(seen.body["ec_transfer_params"]["epd"]["offer"], []).append(lease)
        return entries

    @contextmanager
    def _at_work(self, seen: Seen) -> Iterator[None]:
        keys = [item_hash(data) for _, data in items_of(seen.body)] if seen.kind == "encode" else []
        self._encoding += keys
        self._weigh()
        try:
            yield
        finally:
            for key in keys:
                self._encoding.remove(key)

    def _grant(self, key: str, lease: str) -> dict[str, Any]:
        self._granted += 1
        self._stored[key] = self._item_bytes
        self.leases[lease] = key
        self._weigh()
        return {
            "version": 2,
            "key": key,
            "lease": lease,
            "epoch": self.epoch,
            "rank": 0,
            "nbytes": self._item_bytes,
            "at": self.instance_id,
        }

    def _weigh(self) -> None:
        nbytes = len({*self.leases.values(), *self._encoding}) * self._item_bytes
        self.peak = max(self.peak, nbytes)
        if nbytes > self._limits.get("pool_bytes", nbytes):
            self.overruns.append(nbytes)

    def _read(self, seen: Seen) -> bool:
        """Take over the embeddings that a prefill needs; False if one is neither leased nor here."""
        prefills = seen.kind == "prefill" or not seen.body.get("kv_transfer_params")
        params = (seen.body.get("ec_transfer_params") or {}) if prefills else {}
        handles = [each for entry in params.values() for each in entry.get("parts", [entry.get("handle")])]
        for handle in [each for each in handles if "at" in (each or {})]:
            producer = _RUNNING[handle["at"]]
            leased = producer.epoch == handle["epoch"] and producer.leases.pop(handle["lease"], None)
            if not leased and handle["key"] not in self._landed:
                return False
            self._landed.add(handle["key"])
        return True

    async def _lease(self, request: web.Request) -> web.Response:
        seen = Seen(request.path, await request.json(), 0, request.headers)
        self.lease_calls.append(seen)
        if self.does.lease_status != 200:
            return self._refusal(self.does.lease_status, b"")
        key = seen.body["key"]
        handle = self._grant(key, seen.body["lease"]) if key in self._stored else None
        if self.does.lease_hold is not None:
            await self.does.lease_hold.wait()
        return web.json_response({"handle": handle})

    async def _release(self, request: web.Request) -> web.Response:
        seen = Seen(request.path, await request.json(), 0, request.headers)
        self.release_calls.append(seen)
        if self.does.release_hold is not None:
            await self.does.release_hold.wait()
        for lease in seen.body["leases"]:
            self.leases.pop(lease, None)
        return web.json_response({})

    async def _forget(self, request: web.Request) -> web.Response:
        seen = Seen(request.path, await request.json(), 0, request.headers)
        self.forget_calls.append(seen)
        for lease in self._offers.pop(seen.body["transfer"], ()):
            self.leases.pop(lease, None)
        return web.json_response({})

    async def _told_of_kv(self, request: web.Request) -> web.Response:
        seen = Seen(request.path, await request.json(), 0, request.headers)
        self.kv_calls.append((request.match_info["what"], seen))
        if self.does.kv_hold is not None:
            await self.does.kv_hold.wait()
        return web.json_response({}, status=self.does.kv_status)

    def _handed_over(self, seen: Seen) -> dict[str, Any]:
        return {
            "do_remote_prefill": True,
            "do_remote_decode": False,
            "remote_block_ids": [[1, 2]],
            "remote_engine_id": self.instance_id,
            "remote_request_id": seen.request_id,
        }

    def _words(self, seen: Seen, index: int) -> list[str]:
        if self.does.words is not None:
            return self.does.words
        seed = seen.body.get("seed")
        own_choice = [] if seed is None else [f"seed={seed + index}"]
        return [*prompt_words(seen.body, index // (seen.body.get("n") or 1)), *own_choice]

    async def _stream(self, request: web.Request, seen: Seen) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream; charset=utf-8"})
        await response.prepare(request)
        sent = 0
        async for event in self._events(seen):
            await response.write(event)
            sent += 1
            if sent == self.does.break_after:
                request.transport.abort()
                return response
        return response

    async def _events(self, seen: Seen) -> AsyncIterator[bytes]:
        if self.does.first_event:
            yield self.does.first_event
        said = 0
        for index in _indices(seen):
            for number, word in enumerate(words := self._words(seen, index)):
                last = number == len(words) - 1
                yield event(_chunk(seen, index, word if last else word + " ", "stop" if last else None))
                said += 1
                if number == 0 and self.does.gate is not None:
                    await self.does.gate.wait()
        if (seen.body.get("stream_options") or {}).get("include_usage"):
            yield event({**_chunk(seen, 0, "", None), "choices": [], "usage": _usage(seen, said)})
        yield b"data: [DONE]\n\n"


def item_hash(data: str) -> str:
    """The content key of an item."""
    return "h" + hashlib.sha256(data.encode()).hexdigest()[:12]


def grid(data: str) -> dict[str, Any]:
    """The metadata of an item; differs from item to item as its size does."""
    return {"image_grid_thw": [1, 2, len(data)]}


def error_body(message: str) -> dict[str, Any]:
    return {"error": {"message": message, "type": "BadRequestError", "param": None, "code": 400}}


def _parts(body: dict[str, Any]) -> list[Any]:
    parts: list[Any] = []
    for message in body.get("messages") or []:
        content = message.get("content")
        parts += content if isinstance(content, list) else [content or ""]
    return parts


def items_of(body: dict[str, Any]) -> list[tuple[str, str]]:
    """Kind and data of each item; for one that comes as metadata, its hash instead of the data."""
    found = []
    for part in _parts(body):
        if isinstance(part, dict) and part.get("type") != "text":
            kind = part["type"]
            if kind.endswith("_embeds"):
                assert isinstance(part[kind], dict), "metadata only"
                found.append((kind, part["uuid"]))
            else:
                payload = part[kind]
                found.append((kind.removesuffix("_url"), payload["data"] if "data" in payload else payload["url"]))
    return found


def prompt_words(body: dict[str, Any], prompt: int) -> list[str]:
    if "prompt" in body:
        given = body["prompt"]
        several = isinstance(given, list) and bool(given) and not isinstance(given[0], int)
        return str(given[prompt] if several else given).split(" ")
    items = iter(items_of(body))
    words: list[str] = []
    for part in _parts(body):
        if isinstance(part, str) or part.get("type") == "text":
            words.append(part if isinstance(part, str) else part["text"])
        else:
            kind, data = next(items)
            words.append(f"<{data if kind.endswith('_embeds') else item_hash(data)}>")
    return words


def _indices(seen: Seen) -> range:
    given = seen.body.get("prompt")
    several = isinstance(given, list) and bool(given) and not isinstance(given[0], int)
    return range((seen.body.get("n") or 1) * (len(given) if several else 1))


def is_chat(seen: Seen) -> bool:
    return "chat" in seen.path


def _choice(seen: Seen, index: int, words: list[str]) -> dict[str, Any]:
    text = " ".join(words)
    said = {"message": {"role": "assistant", "content": text}} if is_chat(seen) else {"text": text}
    return {"index": index, **said, "logprobs": None, "finish_reason": "stop"}


def _usage(seen: Seen, completion: int) -> dict[str, Any]:
    given = seen.body.get("prompt")
    several = isinstance(given, list) and bool(given) and not isinstance(given[0], int)
    prompt = sum(len(prompt_words(seen.body, index)) for index in range(len(given) if several else 1))
    return {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}


def _answer(seen: Seen, choices: list[dict[str, Any]]) -> dict[str, Any]:
    said = sum(
        len((choice["message"]["content"] if is_chat(seen) else choice["text"]).split(" ")) for choice in choices
    )
    return {
        "id": ("chatcmpl-" if is_chat(seen) else "cmpl-") + seen.request_id,
        "object": "chat.completion" if is_chat(seen) else "text_completion",
        "created": 1700000000,
        "model": seen.body.get("model") or "tiny",
        "choices": choices,
        "usage": _usage(seen, said),
        "kv_transfer_params": None,
        "ec_transfer_params": None,
    }


def _chunk(seen: Seen, index: int, text: str, finish: str | None) -> dict[str, Any]:
    said = {"delta": {"role": "assistant", "content": text}} if is_chat(seen) else {"text": text}
    return {
        "id": ("chatcmpl-" if is_chat(seen) else "cmpl-") + seen.request_id,
        "object": "chat.completion.chunk" if is_chat(seen) else "text_completion",
        "created": 1700000000,
        "model": seen.body.get("model") or "tiny",
        "choices": [{"index": index, **said, "logprobs": None, "finish_reason": finish}],
    }


def event(data: dict[str, Any]) -> bytes:
    return b"data: " + json.dumps(data, separators=(",", ":")).encode() + b"\n\n"
