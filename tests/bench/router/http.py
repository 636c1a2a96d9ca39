# SPDX-License-Identifier: Apache-2.0
"""Just enough of HTTP/1.1 for a client and a server that cost next to nothing beside what they measure."""

import asyncio
import re
from collections.abc import Callable, Sequence

from tests.bench.errors import BenchError

END = b"\r\n\r\n"
_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
_CHUNKED = re.compile(rb"\r\ntransfer-encoding: *chunked", re.IGNORECASE)
_LAST_CHUNK = b"\r\n0\r\n\r\n"

#: Longer bodies are counted and forgotten.
KEPT = 64 * 2**10


class Message:
    """A message that is being read: its head, and its body as far as it is kept."""

    def __init__(self) -> None:
        self.head = b""
        self.body = b""
        self._length: int | None = None
        self._received = 0

    def feed(self, data: bytes) -> bool:
        """Whether the message is whole now; nothing of the next one may come before it has been answered."""
        if not self.head:
            self.body += data
            if END not in self.body:
                return False
            head, _, data = self.body.partition(END)
            self.head, self.body = head, b""
            found = _LENGTH.search(head)
            self._length = int(found[1]) if found else None if _CHUNKED.search(head) else 0
        self._received += len(data)
        if self._length is None or self._length <= KEPT:
            self.body += data
        return self._ended()

    def _ended(self) -> bool:
        return self.body.endswith(_LAST_CHUNK) if self._length is None else self._received >= self._length


class Server(asyncio.Protocol):
    """Answers one request after the other of a connection, by a function that gets the request and the transport."""

    def __init__(self, answer: Callable[[Message, asyncio.Transport], None]) -> None:
        self._answer = answer
        self._message = Message()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        if self._message.feed(data):
            message, self._message = self._message, Message()
            self._answer(message, self._transport)


class Client(asyncio.Protocol):
    """Sends one request after the other over one connection."""

    def __init__(self) -> None:
        self._message = Message()
        self._answered: asyncio.Future[Message] | None = None

    @classmethod
    async def connect(cls, host: str, port: int) -> "Client":
        _, client = await asyncio.get_running_loop().create_connection(cls, host, port)
        return client

    async def ask(self, head: bytes, body: Sequence[bytes]) -> Message:
        """The whole answer, of status 200.

        Raises:
            BenchError: another status, or none.
        """
        self._answered = asyncio.get_running_loop().create_future()
        self._transport.writelines([head, *body])
        answer = await self._answered
        if not answer.head.startswith(b"HTTP/1.1 200"):
            raise BenchError(f"answered {answer.head.decode()}: {answer.body[:500]!r}")
        return answer

    def close(self) -> None:
        self._transport.close()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        if self._answered and self._message.feed(data):
            message, self._message = self._message, Message()
            self._answered.set_result(message)

    def connection_lost(self, exc: Exception | None) -> None:
        if self._answered and not self._answered.done():
            self._answered.set_exception(BenchError(f"the connection broke off: {exc}"))
