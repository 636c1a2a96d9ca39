# SPDX-License-Identifier: Apache-2.0
"""TCP forwarders that count what an instance is sent."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from urllib.parse import urlsplit

CHUNK_BYTES = 2**16


@dataclass(slots=True)
class Forwarder:
    """Stands in front of one server.

    Attributes:
        url: reaches the server through here.
        sent: bytes that clients have sent to the server, headers included.
    """

    url: str
    sent: int = 0


@asynccontextmanager
async def forwarding(target: str) -> AsyncIterator[Forwarder]:
    """A forwarder in front of `target`, an http URL."""
    address = urlsplit(target)
    forwarder = Forwarder("")
    writers: list[asyncio.StreamWriter] = []

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there_reader, there_writer = await asyncio.open_connection(address.hostname, address.port)
        writers.extend((writer, there_writer))
        await asyncio.gather(_pump(reader, there_writer, forwarder), _pump(there_reader, writer, None))

    server = await asyncio.start_server(connected, "127.0.0.1", 0)
    forwarder.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    try:
        yield forwarder
    finally:
        server.close()
        await server.wait_closed()
        for writer in writers:
            writer.close()
        await asyncio.gather(*(writer.wait_closed() for writer in writers), return_exceptions=True)


async def _pump(source: asyncio.StreamReader, target: asyncio.StreamWriter, counter: Forwarder | None) -> None:
    """Copy until the source ends, then end the target; a broken connection ends both."""
    with suppress(ConnectionError):
        while data := await source.read(CHUNK_BYTES):
            if counter is not None:
                counter.sent += len(data)
            target.write(data)
            await target.drain()
    target.close()
