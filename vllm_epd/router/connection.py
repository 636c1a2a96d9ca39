# SPDX-License-Identifier: Apache-2.0
"""One HTTP/1.1 connection to an instance, for one request after the other.

A request to an instance is a few headers and a JSON body, and a router makes several of them for each that it
gets; a client library for everything that HTTP has takes several times as long over one as the kernel does.
"""

import asyncio
from collections import deque
from collections.abc import Iterator
from typing import cast

from httptools import HttpParserError, HttpResponseParser

from vllm_epd.router.inline import Piece, Pieces
from vllm_epd.router.web.bell import Bell

# Other requests get a turn after so much.
_TURN = 512 * 2**10
#: An answer that nobody reads stops the instance once so much of it lies here.
_READ_AHEAD = 256 * 2**10


class BrokenConnectionError(ConnectionError):
    """The instance closed the connection, or spoke something else than HTTP, before its answer was whole."""


class Connection(asyncio.Protocol):
    """A protocol that sends requests and reads their answers; use it for one at a time.

    Attributes:
        status: status of the answer.
        headers: its headers, names in lower case; of several with one name, the last.
        complete: the whole answer has arrived.
    """

    def __init__(self) -> None:
        self.status = 0
        self.headers: dict[bytes, bytes] = {}
        self.complete = True
        self._transport: asyncio.Transport | None = None
        self._parser = HttpResponseParser(self)
        self._begun = False
        self._sent = True
        self._stays = True
        self._error: BaseException | None = None
        self._chunks: deque[bytes] = deque()
        self._waiting = 0
        self._paused = False
        self._full = False
        self._bell = Bell()

    @property
    def reusable(self) -> bool:
        """Whether another request may be sent."""
        return self.complete and self._sent and self._stays and self._error is None

    async def request(self, head: bytes, body: Pieces) -> None:
        """Send a request, and return when status and headers of its answer are here.

        Raises:
            OSError: the connection broke.
            TimeoutError: `expire` was called.
        """
        self.status, self.headers = 0, {}
        self.complete = self._begun = self._sent = False
        await self._send(head, body)
        while not self._begun:
            await self._news()

    async def read(self) -> bytes:
        """The rest of the answer; failures are those of `request`."""
        while not self.complete:
            await self._news(reading=True)
        return self._take()

    async def read_some(self) -> bytes:
        """What has arrived since, at least one byte; empty at the end. Failures are those of `request`."""
        while not self._chunks and not self.complete:
            await self._news()
        return self._take()

    def expire(self) -> None:
        """Let whoever waits, or waits next, fail: the answer took too long."""
        self._fail(TimeoutError())
        self.abort()

    def give_up(self, why: str) -> None:
        """Let whoever waits, or waits next, fail: no answer will come."""
        self._fail(BrokenConnectionError(why))
        self.abort()

    def abort(self) -> None:
        """Close the connection at once, by which the instance learns that nobody waits for its answer."""
        if self._transport is not None:
            self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:  # noqa: D102
        self._transport = cast(asyncio.Transport, transport)

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: D102
        if self._begun and not self.complete and self._ends_with_connection():
            self.on_message_complete()
        self._fail(BrokenConnectionError(str(exc or "connection closed")))

    def data_received(self, data: bytes) -> None:  # noqa: D102
        if self.complete:
            self._fail(BrokenConnectionError("an answer that nobody asked for"))
            self.abort()
            return
        try:
            self._parser.feed_data(data)
        except HttpParserError as error:
            self._fail(BrokenConnectionError(f"no HTTP: {error}"))
            self.abort()

    def pause_writing(self) -> None:  # noqa: D102
        self._full = True

    def resume_writing(self) -> None:  # noqa: D102
        self._full = False
        self._bell.ring()

    def on_header(self, name: bytes, value: bytes) -> None:
        """Called by the parser."""
        self.headers[name.lower()] = value

    def on_headers_complete(self) -> None:
        """Called by the parser."""
        self.status = self._parser.get_status_code()
        self._begun = self.status >= 200
        self._bell.ring()

    def on_body(self, body: bytes) -> None:
        """Called by the parser."""
        self._chunks.append(body)
        self._waiting += len(body)
        if self._waiting > _READ_AHEAD and not self._paused and self._transport is not None:
            self._paused = True
            self._transport.pause_reading()
        self._bell.ring()

    def on_message_complete(self) -> None:
        """Called by the parser."""
        self._stays = self._parser.should_keep_alive()
        self.complete = self._begun
        self._bell.ring()

    async def _send(self, head: bytes, body: Pieces) -> None:
        transport = self._transport
        if transport is None:
            raise BrokenConnectionError("not connected")
        for number, pieces in enumerate(_turns([head, *body])):
            if number:
                await asyncio.sleep(0)
            transport.writelines(pieces)
            while self._full and not self._begun:
                await self._news()
            if self._begun:  # refused before all of it was sent
                return
        self._sent = True

    def _take(self) -> bytes:
        taken = self._chunks[0] if len(self._chunks) == 1 else b"".join(self._chunks)
        self._chunks.clear()
        self._waiting = 0
        self._go_on()
        return taken

    def _go_on(self) -> None:
        if self._paused and self._transport is not None:
            self._paused = False
            self._transport.resume_reading()

    async def _news(self, *, reading: bool = False) -> None:
        """Wait until something has happened."""
        if self._error is not None:
            raise self._error
        if reading:
            self._go_on()
        await self._bell.wait()

    def _fail(self, error: BaseException) -> None:
        if self._error is None:
            self._error = error
        self._bell.ring()

    def _ends_with_connection(self) -> bool:
        return b"content-length" not in self.headers and b"transfer-encoding" not in self.headers


def _turns(pieces: Pieces) -> Iterator[Pieces]:
    """The pieces in order, as many at once as may go out before other requests get a turn."""
    turn: list[Piece] = []
    size = 0
    for piece in pieces:
        turn.append(piece)
        size += len(piece)
        if size >= _TURN:
            yield turn
            turn, size = [], 0
    if turn:
        yield turn
