# SPDX-License-Identifier: Apache-2.0
"""Connections to instances, kept open between requests."""

import asyncio
import ssl
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from time import monotonic
from typing import Self
from urllib.parse import urlsplit

from vllm_epd.router.connection import Connection

# Below the 5 s after which vLLM's HTTP server closes an idle connection: one that is being closed must not
# be taken for a new request, which could not be told from a request that got lost.
_KEEP_ALIVE_S = 2.0
_COMMON = "Accept: */*\r\nAccept-Encoding: identity\r\nContent-Type: application/json\r\n"


@dataclass(slots=True)
class Address:
    """Where an instance listens, the beginning of each request to it, and its idle connections, the latest last."""

    host: str
    port: int
    tls: bool
    path: str
    common: str
    idle: deque[tuple[float, Connection]] = field(default_factory=deque)

    @classmethod
    def of(cls, url: str) -> Self:
        """Read a base URL."""
        parts = urlsplit(url)
        tls = parts.scheme == "https"
        host, port = parts.hostname or "", parts.port or (443 if tls else 80)
        name = f"[{host}]" if ":" in host else host
        return cls(host, port, tls, parts.path.rstrip("/"), f" HTTP/1.1\r\nHost: {name}:{port}\r\n{_COMMON}")

    def head(self, path: str, headers: Mapping[str, str], length: int) -> bytes:
        """The head of a POST request with a JSON body of `length` bytes.

        Raises:
            ValueError: a header with a line break.
        """
        written = "".join([f"{name}: {value}\r\n" for name, value in headers.items()])
        if not written.count("\n") == written.count("\r") == len(headers):
            raise ValueError("a header has a line break in it")
        request = f"POST {self.path}{path}{self.common}Content-Length: {length}\r\n{written}\r\n"
        return request.encode("utf-8", "surrogateescape")

    def take(self) -> Connection | None:
        """An idle connection to send a request on; None if there is none."""
        oldest = monotonic() - _KEEP_ALIVE_S
        while self.idle:
            since, connection = self.idle.pop()
            if since > oldest and connection.reusable:
                return connection
            connection.abort()
        return None


class Connections:
    """The connections of one router."""

    def __init__(self, connect_s: float) -> None:
        self._connect_s = connect_s
        self._addresses: dict[str, Address] = {}
        self._tls: ssl.SSLContext | None = None
        self._sweeping: asyncio.TimerHandle | None = None

    def address(self, url: str) -> Address:
        """The address of a base URL."""
        found = self._addresses.get(url)
        if found is None:
            found = self._addresses[url] = Address.of(url)
        return found

    async def open(self, address: Address) -> Connection:
        """A new connection.

        Raises:
            OSError: there is none to be had; a TimeoutError if nobody answered in time.
        """
        async with asyncio.timeout(self._connect_s):
            tls = self._context() if address.tls else None
            loop = asyncio.get_running_loop()
            _, connection = await loop.create_connection(Connection, address.host, address.port, ssl=tls)
            return connection

    def release(self, address: Address, connection: Connection) -> None:
        """Take a connection back, or close it in the middle of a request."""
        if not connection.reusable:
            connection.abort()
            return
        address.idle.append((monotonic(), connection))
        if self._sweeping is None:
            self._sweeping = asyncio.get_running_loop().call_later(_KEEP_ALIVE_S, self._sweep)

    def close(self) -> None:
        """Close all that are idle; those in use are closed by whoever uses them."""
        if self._sweeping is not None:
            self._sweeping.cancel()
        for address in self._addresses.values():
            for _, connection in address.idle:
                connection.abort()
        self._addresses.clear()

    def _sweep(self) -> None:
        """Close what has been idle for too long."""
        oldest = monotonic() - _KEEP_ALIVE_S
        for address in self._addresses.values():
            while address.idle and address.idle[0][0] <= oldest:
                address.idle.popleft()[1].abort()
        some = any(address.idle for address in self._addresses.values())
        self._sweeping = asyncio.get_running_loop().call_later(_KEEP_ALIVE_S, self._sweep) if some else None

    def _context(self) -> ssl.SSLContext:
        if self._tls is None:
            self._tls = ssl.create_default_context()
        return self._tls
