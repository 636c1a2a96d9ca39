# SPDX-License-Identifier: Apache-2.0
"""The body of a request while it arrives. No I/O."""

from collections.abc import AsyncIterator, Callable

from vllm_epd.router.web.bell import Bell
from vllm_epd.router.web.errors import BodyTooLargeError, MalformedError

#: A client is stopped once so much lies here that nobody has read.
_READ_AHEAD = 256 * 2**10


class Body:
    """Bytes on their way from a connection to the handler of their request.

    Attributes:
        length: how much will come; None where only the end tells.
        complete: all of it has come.
        flows: more may come.
    """

    def __init__(self, length: int | None, limit: int, changed: Callable[[], None]) -> None:
        """Nothing is here yet.

        Args:
            length: see above.
            limit: how much of it is taken.
            changed: called when `flows` has changed.
        """
        self.complete = False
        self.flows = True
        self.length = length
        self._limit = limit
        self._changed = changed
        self._chunks: list[bytes] = []
        self._waiting = 0
        self._broken: str | None = None
        self._bell = Bell()

    def feed(self, data: bytes) -> None:
        """More of it is here."""
        self._chunks.append(data)
        self._waiting += len(data)
        if self._waiting > _READ_AHEAD:
            self._let_flow(False)
        self._bell.ring()

    def close(self) -> None:
        """All of it is here."""
        self.complete = True
        self._bell.ring()

    def fail(self, why: str) -> None:
        """Nothing more will come, though not all is here."""
        self._broken = why
        self._bell.ring()

    async def chunks(self) -> AsyncIterator[bytes]:
        """The pieces, as they come.

        Raises:
            BodyTooLargeError: they are more than the limit.
            MalformedError: the client has sent something else than the rest of it.
        """
        if self.length is not None and self.length > self._limit:
            raise _too_large(self._limit)
        size = 0
        while True:
            if self._chunks:
                chunk = self._take()
                size += len(chunk)
                if size > self._limit:
                    raise _too_large(self._limit)
                yield chunk
                continue
            if self.complete:
                return
            self._let_flow(True)
            await self._news()

    async def read(self) -> bytes:
        """All of it; failures are those of `chunks`."""
        return b"".join([chunk async for chunk in self.chunks()])

    def _take(self) -> bytes:
        """All that is here; that of very small pieces takes many times as much room until they are joined."""
        taken = self._chunks[0] if len(self._chunks) == 1 else b"".join(self._chunks)
        self._chunks.clear()
        self._waiting = 0
        return taken

    async def _news(self) -> None:
        if self._broken is not None:
            raise MalformedError(self._broken)
        await self._bell.wait()

    def _let_flow(self, flows: bool) -> None:
        if flows is not self.flows:
            self.flows = flows
            self._changed()


def _too_large(limit: int) -> BodyTooLargeError:
    return BodyTooLargeError(f"the body has more than {limit} bytes, which is all that is taken")
