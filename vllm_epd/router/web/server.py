# SPDX-License-Identifier: Apache-2.0
"""Listening for clients, and leaving in good order."""

import asyncio
from pathlib import Path

from vllm_epd.router.web.connection import ClientConnection, Refuse, Serve

#: How often connections are looked for that have done nothing for too long.
_SWEEP_S = 5.0
#: Connections that may wait to be accepted.
_BACKLOG = 1024


class HttpServer:
    """All connections of clients, from `listen` to `close`."""

    def __init__(self, serve: Serve, refuse: Refuse, most_body: int) -> None:
        """Answer with `serve`, or with `refuse` what is no request; a body may have so many bytes."""
        self._serve = serve
        self._refuse = refuse
        self._most_body = most_body
        self._connections: set[ClientConnection] = set()
        self._nobody = asyncio.Event()
        self._nobody.set()
        self._closing = False
        self._listener: asyncio.AbstractServer | None = None
        self._sweeping: asyncio.TimerHandle | None = None

    async def listen(self, host: str, port: int, *, shared: bool = False) -> int:
        """Accept connections at an address, which other processes may share; the port, if it was 0.

        Raises:
            OSError: the address cannot be listened on.
        """
        loop = asyncio.get_running_loop()
        listener = await loop.create_server(self._connection, host, port, backlog=_BACKLOG, reuse_port=shared or None)
        self._began(listener)
        found: int = listener.sockets[0].getsockname()[1]
        return found

    async def listen_at(self, socket: Path) -> None:
        """Accept connections at a Unix socket; failures are those of `listen`."""
        self._began(await asyncio.get_running_loop().create_unix_server(self._connection, str(socket)))

    async def close(self, grace_s: float) -> None:
        """Accept nothing more, let what is being served finish for so long, then cancel it."""
        self._closing = True
        if self._listener is not None:
            self._listener.close()
        for each in list(self._connections):
            each.leave()
        try:
            async with asyncio.timeout(grace_s):
                await self._nobody.wait()
        except TimeoutError:
            late = [each.task for each in self._connections if each.task is not None]
            for each in list(self._connections):
                each.abort()
            await asyncio.gather(*late, return_exceptions=True)
        if self._sweeping is not None:
            self._sweeping.cancel()

    def came(self, connection: ClientConnection) -> None:
        """Called by a connection that is made."""
        self._connections.add(connection)
        self._nobody.clear()
        if self._closing:
            connection.leave()

    def gone(self, connection: ClientConnection) -> None:
        """Called by a connection that has ended."""
        self._connections.discard(connection)
        if not self._connections:
            self._nobody.set()

    def _began(self, listener: asyncio.AbstractServer) -> None:
        self._listener = listener
        self._sweep()

    def _connection(self) -> ClientConnection:
        return ClientConnection(self._serve, self._refuse, self._most_body, self)

    def _sweep(self) -> None:
        loop = asyncio.get_running_loop()
        for each in list(self._connections):
            each.expire(loop.time())
        self._sweeping = loop.call_later(_SWEEP_S, self._sweep)
