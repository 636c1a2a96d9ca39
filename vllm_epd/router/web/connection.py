# SPDX-License-Identifier: Apache-2.0
"""One connection of a client: its requests, one after the other, and their answers."""

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable, Mapping
from http import HTTPStatus
from socket import SO_KEEPALIVE, SOL_SOCKET
from typing import Protocol, cast

from httptools import HttpParserError, HttpParserUpgrade, HttpRequestParser
from multidict import CIMultiDict

from vllm_epd.errors import RequestError
from vllm_epd.router.web.bell import Bell
from vllm_epd.router.web.body import Body
from vllm_epd.router.web.errors import HeadTooLargeError, MalformedError
from vllm_epd.router.web.messages import Request, Response, Stream, head
from vllm_epd.router.web.routes import Answer

logger = logging.getLogger(__name__)

#: So much may come in a row that neither begins a request nor is part of a body; a head may take so many seconds.
MOST_HEAD = 64 * 2**10
_HEAD_S = 60.0
#: Seconds after which a connection is closed that nobody uses, or whose client has stopped in the middle of a body.
_IDLE_S = 75.0
#: Seconds that a client has for hanging up where it may still be sending.
_LINGER_S = 10.0
#: How many requests of one client may wait for the one in front of them before no more are read; how many at most.
_AHEAD = 4
MOST_WAITING = 128

_CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
_LAST_CHUNK = b"0\r\n\r\n"
_CLOSE: Mapping[str, str] = {"Connection": "close"}

#: Answers a request; what fails is an answer too.
Serve = Callable[[Request], Awaitable[Answer]]
#: The answer to what is no request.
Refuse = Callable[[RequestError], Response]


class Watcher(Protocol):
    """Who knows of all connections."""

    def came(self, connection: "ClientConnection") -> None:
        """One is there."""

    def gone(self, connection: "ClientConnection") -> None:
        """It is not any more."""


class ClientConnection(asyncio.Protocol):
    """A protocol that has each request served by a task of its own, which a client that goes away cancels.

    Attributes:
        task: serves a request; None while there is none.
    """

    def __init__(self, serve: Serve, refuse: Refuse, most_body: int, watcher: "Watcher") -> None:
        """For a connection that is about to be made.

        Args:
            serve: answers requests.
            refuse: answers what is none.
            most_body: bytes that a request may have after its head.
            watcher: is told when the connection is made, and when it has ended.
        """
        self._serve = serve
        self._refuse = refuse
        self._most_body = most_body
        self._watcher = watcher
        self._loop = asyncio.get_running_loop()
        self._since = self._loop.time()  # when it came to do what it does: wait, read a head, or let the client finish
        self._heard = self._since  # when anything came
        self._parser = HttpRequestParser(self)
        self._target = b""
        self._headers: CIMultiDict[str] | None = None
        self._idle_bytes = 0  # come in a row without a beginning, an end, or a piece of a body
        self._coming: Request | None = None
        self._waiting: deque[Request] = deque()
        self.task: asyncio.Task[None] | None = None
        self._deaf = self._leaving = self._lost = self._paused = self._full = False
        self._room = Bell()

    def leave(self) -> None:
        """Close the connection once the request that is being served, if any, is answered."""
        self._leaving = True
        if self.task is None:
            self._transport.close()

    def abort(self) -> None:
        """Close it at once; what is being served is cancelled."""
        self._transport.abort()

    async def send(self, data: bytes) -> None:
        """Send a part of the answer to the request that is being served; returns when there is room for more.

        Raises:
            ConnectionResetError: the client went away.
        """
        if self._transport.is_closing():
            raise ConnectionResetError("the client went away")
        self._transport.write(data)
        while self._full and not self._lost:
            await self._room.wait()

    def expire(self, now: float) -> None:
        """Close it if it has done nothing for too long."""
        if self.task is not None:
            if self._coming is not None and not self._paused and now - self._heard > _IDLE_S:
                self.abort()
            return
        patience_s = _LINGER_S if self._deaf else _HEAD_S if self._headers is not None else _IDLE_S
        if now - self._since > patience_s:
            self.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:  # noqa: D102
        self._transport = cast(asyncio.Transport, transport)
        # A client whose host is gone sends no word of it.
        transport.get_extra_info("socket").setsockopt(SOL_SOCKET, SO_KEEPALIVE, 1)
        self._watcher.came(self)

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: D102
        self._lost = True
        self._room.ring()
        task, self.task = self.task, None
        if task is not None and not task.done():  # of one that has failed, to cancel it would hide how
            task.cancel()
        # Whatever refers to itself in a circle stays until the garbage collector comes, which is seldom.
        self._coming = None
        self._waiting.clear()
        del self._parser
        self._watcher.gone(self)

    def data_received(self, data: bytes) -> None:  # noqa: D102
        self._heard = self._loop.time()
        try:
            while data and not self._deaf:
                data = self._parsed(data)
        except HttpParserError as error:
            self._fail(MalformedError(f"this is no HTTP/1.1 request: {error}"))

    def pause_writing(self) -> None:  # noqa: D102
        self._full = True

    def resume_writing(self) -> None:  # noqa: D102
        self._full = False
        self._room.ring()

    def on_message_begin(self) -> None:
        """Called by the parser."""
        self._target, self._headers, self._idle_bytes = b"", CIMultiDict(), 0
        if self.task is None:
            self._since = self._loop.time()

    def on_url(self, url: bytes) -> None:
        """Called by the parser, with one piece after the other."""
        self._target += url

    def on_header(self, name: bytes, value: bytes) -> None:
        """Called by the parser; of those after a body nothing is made."""
        if self._headers is not None and self._coming is None:
            self._headers.add(name.decode("latin-1"), value.decode("utf-8", "surrogateescape"))

    def on_headers_complete(self) -> None:
        """Called by the parser."""
        if self._headers is None or self._proposes():
            return
        headers, parser = self._headers, self._parser
        length = headers.get("Content-Length")
        body = Body(None if length is None else int(length), self._most_body, self._regulate)
        http11 = parser.get_http_version() == "1.1"
        method = parser.get_method().decode("latin-1")
        request = self._coming = Request(
            method,
            self._target.decode("latin-1"),
            headers,
            body,
            self._begin,
            http11=http11,
            stays=http11 and parser.should_keep_alive() and method != "CONNECT",
        )
        if self.task is None:
            self._take_up(request)
        elif len(self._waiting) < MOST_WAITING:
            self._waiting.append(request)
            self._regulate()
        else:
            self._deaf = True

    def on_body(self, data: bytes) -> None:
        """Called by the parser."""
        self._idle_bytes = 0
        if self._coming is not None:
            self._coming.body.feed(data)

    def on_message_complete(self) -> None:
        """Called by the parser."""
        if self._proposes():
            return
        self._idle_bytes = 0
        if self._coming is not None:
            self._coming.body.close()
        self._coming = self._headers = None
        self._regulate()

    def _parsed(self, data: bytes) -> bytes:
        """Have it parsed up to where a client proposes another protocol, which a server may pass over; the rest."""
        self._idle_bytes += len(data)
        try:
            self._parser.feed_data(data)
        except HttpParserUpgrade as proposal:
            rest = data[proposal.args[0] :]
            return (self._plain_head() if self._proposes() else b"") + rest
        if self._idle_bytes > MOST_HEAD:
            self._fail(HeadTooLargeError(f"the head of the request has more than {MOST_HEAD} bytes"))
        return b""

    def _proposes(self) -> bool:
        """Whether the head that has just come proposes another protocol: the parser takes what follows for that."""
        return self._parser.should_upgrade() and self._parser.get_method() != b"CONNECT"

    def _plain_head(self) -> bytes:
        """That head once more, without the proposal, for a new parser."""
        parser, headers = self._parser, self._headers or CIMultiDict()
        headers.popall("Upgrade", None)
        lines = "".join([f"{name}: {value}\r\n" for name, value in headers.items()])
        first = b"%b %b HTTP/%b\r\n" % (parser.get_method(), self._target, parser.get_http_version().encode())
        self._parser = HttpRequestParser(self)
        return first + lines.encode("utf-8", "surrogateescape") + b"\r\n"

    def _take_up(self, request: Request) -> None:
        expects = request.http11 and request.headers.get("Expect", "").lower() == "100-continue"
        if expects and not request.body.complete:
            self._transport.write(_CONTINUE)
        self.task = self._loop.create_task(self._answer(request))

    async def _answer(self, request: Request) -> None:
        try:
            answer = await self._serve(request)
            if isinstance(answer, Response):
                await self.send(_whole(answer, self._closing(request), with_body=request.method != "HEAD"))
        except ConnectionResetError:
            self.abort()
        except Exception:
            logger.exception("%s %s met a bug", request.method, request.target)
            self.abort()
        except asyncio.CancelledError:
            self.abort()
            raise
        else:
            self._go_on(request)

    def _go_on(self, request: Request) -> None:
        """The request is answered: turn to the next one, if there is to be one."""
        self.task = None
        self._since = self._loop.time()
        if self._waiting and request.stays:
            self._take_up(self._waiting.popleft())
            self._regulate()
        elif self._deaf or not request.body.complete:
            self._linger()
        elif self._leaving or not request.stays:
            self._transport.close()

    def _fail(self, error: RequestError) -> None:
        """What comes is no request, or not the rest of one; nothing after it can be read."""
        self._deaf = True
        if self._coming is not None:
            self._coming.body.fail(str(error))
        elif self.task is None:
            self._transport.write(_whole(self._refuse(error), _CLOSE))
        if self.task is None:
            self._linger()

    def _linger(self) -> None:
        """Say no more, and pass over what comes, until the client hangs up: to do so first may cost it the answer."""
        self._deaf = True
        self._since = self._loop.time()
        if not self._transport.is_closing():
            self._regulate()
            self._transport.write_eof()

    def _begin(self, request: Request, content_type: str, headers: Mapping[str, str]) -> Stream:
        framing = {"Content-Type": content_type, **({"Transfer-Encoding": "chunked"} if request.http11 else {})}
        return _Outgoing(self, head(200, framing, headers, self._closing(request)), chunked=request.http11)

    def _closing(self, request: Request) -> Mapping[str, str]:
        """What tells the client whether it may ask again over this connection."""
        last = self._leaving or (self._deaf and not self._waiting)
        request.stays = request.stays and request.body.complete and not last
        return {} if request.stays else _CLOSE

    def _regulate(self) -> None:
        """Read on, or do not for now: there is enough to do."""
        much = len(self._waiting) >= _AHEAD or (self._coming is not None and not self._coming.body.flows)
        pauses = much and not self._deaf
        if pauses is not self._paused and not self._transport.is_closing():
            self._paused = pauses
            if pauses:
                self._transport.pause_reading()
            else:
                self._transport.resume_reading()


class _Outgoing:
    """An answer that goes out as it comes; its head waits for the first of it."""

    status = 200

    def __init__(self, connection: ClientConnection, head: bytes, *, chunked: bool) -> None:
        self._connection = connection
        self._head = head
        self._chunked = chunked

    async def write(self, data: bytes) -> None:
        """Send some of it."""
        if data:
            await self._send(b"%x\r\n%b\r\n" % (len(data), data) if self._chunked else data)

    async def end(self) -> None:
        """Send what is left to be sent."""
        await self._send(_LAST_CHUNK if self._chunked else b"")

    async def _send(self, data: bytes) -> None:
        head, self._head = self._head, b""
        await self._connection.send(head + data)


def _whole(response: Response, closing: Mapping[str, str], *, with_body: bool = True) -> bytes:
    """A whole answer as it is sent."""
    if response.status == HTTPStatus.NO_CONTENT:
        return head(response.status, response.headers, closing)
    about = {"Content-Type": response.content_type, "Content-Length": str(len(response.body))}
    return head(response.status, about, response.headers, closing) + (response.body if with_body else b"")
