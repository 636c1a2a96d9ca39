# SPDX-License-Identifier: Apache-2.0
"""Where an answer goes: to the client, or into the answer that several branches make together."""

import asyncio
from collections.abc import Callable, Mapping
from typing import Protocol

from vllm_epd.errors import RequestError, UpstreamError
from vllm_epd.router import sse
from vllm_epd.router.answers import decode_answer
from vllm_epd.router.choices import StreamMerger
from vllm_epd.router.continuation import continued_answer
from vllm_epd.router.failures import error_body
from vllm_epd.router.jsonio import JsonObject, encode
from vllm_epd.router.opening import Opening
from vllm_epd.router.web.messages import Request, Response, Stream
from vllm_epd.router.web.routes import Answer
from vllm_epd.types import Role

_EVENTS = "text/event-stream; charset=utf-8"


class Sink(Protocol):
    """Takes one answer: either one whole body or any number of events."""

    @property
    def started(self) -> bool:
        """Whether the client has seen a part of the answer, so that its status is settled."""

    async def body(self, raw: bytes) -> None:
        """Take a whole JSON body."""

    async def events(self, events: bytes) -> None:
        """Take whole events, in order; returns when the receiver is ready for more."""


class ClientSink:
    """Sends the answer to the client that asked."""

    def __init__(self, request: Request, begin: Callable[[], Mapping[str, str]]) -> None:
        """Answer `request`; `begin` is called before the first events of a stream go out, and gives its headers."""
        self._request = request
        self._begin = begin
        self._stream: Stream | None = None
        self._whole: Response | None = None

    @property
    def started(self) -> bool:
        """Whether a part of a stream has been sent."""
        return self._stream is not None

    async def body(self, raw: bytes) -> None:
        """Keep a whole body for `finish`."""
        self._whole = Response(raw)

    async def events(self, events: bytes) -> None:
        """Send events at once; the status line goes out with the first ones."""
        if self._stream is None:
            self._stream = self._request.begin(_EVENTS, {"Cache-Control": "no-cache", **self._begin()})
        await self._stream.write(events)

    async def fail(self, error: RequestError) -> None:
        """End a stream that cannot go on with an event that says why."""
        await self.events(sse.event(error_body(error)) + sse.DONE)

    async def finish(self) -> Answer:
        """The answer, complete."""
        if self._stream is not None:
            await self._stream.end()
            return self._stream
        if self._whole is None:
            raise RuntimeError("the pipeline ended without an answer")
        return self._whole


class CollectingSink:
    """Keeps the whole body of one branch."""

    started = False

    def __init__(self) -> None:
        self.answer: JsonObject = {}

    async def body(self, raw: bytes) -> None:
        """Keep a body."""
        self.answer = decode_answer(raw, Role.DECODE.value)

    async def events(self, events: bytes) -> None:
        """Refuse a stream, which was not asked for."""
        raise UpstreamError("the decode instance streamed unasked", stage=Role.DECODE.value)


class MergingSink:
    """Passes the events of one branch on as events of the common stream.

    The branches of a request share target, merger and lock: one block of events goes out at a time.
    """

    def __init__(self, target: Sink, merger: StreamMerger, lock: asyncio.Lock, index: int) -> None:
        self._target = target
        self._merger = merger
        self._lock = lock
        self._index = index

    @property
    def started(self) -> bool:
        """Whether the common stream has begun."""
        return self._target.started

    async def body(self, raw: bytes) -> None:
        """Refuse a whole body where a stream was asked for."""
        raise UpstreamError("the decode instance did not stream", stage=Role.DECODE.value)

    async def events(self, events: bytes) -> None:
        """Rewrite and pass on; an event that tells of a failure fails the whole request."""
        async with self._lock:
            out = b"".join(self._rewritten(data) for data in sse.data_of(events))
            if out:
                await self._target.events(out)

    def _rewritten(self, data: bytes) -> bytes:
        chunk = decode_answer(data, Role.DECODE.value)
        if "error" in chunk:
            raise UpstreamError("a choice failed", stage=Role.DECODE.value, body=data)
        merged = self._merger.chunk(self._index, chunk)
        return b"" if merged is None else sse.event(encode(merged))


class RewrittenSink:
    """Passes a stream on as another one."""

    def __init__(self, target: Sink, rewrite: Callable[[bytes], bytes]) -> None:
        """`rewrite` makes whole events of whole events, in order; none where nothing is to be passed on."""
        self._target = target
        self._rewrite = rewrite

    @property
    def started(self) -> bool:
        """Whether the client has seen a part of the answer."""
        return self._target.started

    async def body(self, raw: bytes) -> None:
        """Refuse a whole body where a stream was asked for."""
        raise UpstreamError("the decode instance did not stream", stage=Role.DECODE.value)

    async def events(self, events: bytes) -> None:
        """Rewrite and pass on."""
        if out := self._rewrite(events):
            await self._target.events(out)


class PrecededSink:
    """Puts P's first token before a whole answer."""

    def __init__(self, target: Sink, opening: Opening) -> None:
        self._target = target
        self._opening = opening

    @property
    def started(self) -> bool:
        """Whether the client has seen a part of the answer."""
        return self._target.started

    async def body(self, raw: bytes) -> None:
        """Put the first token before the others."""
        await self._target.body(continued_answer(self._opening, raw))

    async def events(self, events: bytes) -> None:
        """Refuse a stream, which was not asked for."""
        raise UpstreamError("the decode instance streamed unasked", stage=Role.DECODE.value)
