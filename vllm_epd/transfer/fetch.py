# SPDX-License-Identifier: Apache-2.0
"""The consumer's side: connect to a producer once, then grant, read, done for each embedding."""

import asyncio
import contextlib
import itertools
import logging
import time
from collections.abc import Sequence

import torch
import zmq
import zmq.asyncio

from vllm_epd.errors import EmbeddingLostError, PeerError, PoolError, TransferError
from vllm_epd.transfer import wire
from vllm_epd.transfer.base import Peer, Transport
from vllm_epd.transfer.pool import Span
from vllm_epd.transfer.store import EmbeddingStore, copy_out
from vllm_epd.types import Fingerprint

logger = logging.getLogger(__name__)

READ_POLL_S = 0.0002
ROOM_POLL_S = 0.001


class Connection:
    """One producer: a control socket, answers matched to questions, and its remote region after the Hello."""

    def __init__(self, context: zmq.asyncio.Context, address: str) -> None:
        """Connect the socket; nothing is said yet.

        Raises:
            PeerError: `address` is no ZeroMQ address.
        """
        self.address = address
        self._socket = context.socket(zmq.DEALER)
        self._socket.setsockopt(zmq.LINGER, 0)
        try:
            self._socket.connect(address)
        except zmq.ZMQError as error:
            self._socket.close()
            raise PeerError(f"{address!r} is no address of a peer: {error}") from error
        self._ids = itertools.count(1)
        self._waiting: dict[bytes, asyncio.Future[wire.Reply]] = {}
        self._reader = asyncio.create_task(self._read())
        self.remote: Peer | None = None

    async def ask(self, request: wire.Request) -> wire.Reply:
        """Send `request` and wait for its answer; the caller sets the time limit.

        Raises:
            PeerError: the producer refuses.
        """
        request_id = str(next(self._ids)).encode()
        future: asyncio.Future[wire.Reply] = asyncio.get_running_loop().create_future()
        self._waiting[request_id] = future
        try:
            await self._socket.send_multipart([request_id, wire.encode(request)])
            reply = await future
        finally:
            del self._waiting[request_id]
        if isinstance(reply, wire.Refused):
            raise PeerError(f"{self.address} refused: {reply.reason}")
        return reply

    async def tell(self, request: wire.Request) -> None:
        """Send `request`, which has no answer."""
        await self._socket.send_multipart([b"", wire.encode(request)])

    async def close(self) -> None:
        """Close the socket and forget the remote region."""
        self._reader.cancel()
        await asyncio.gather(self._reader, return_exceptions=True)
        self._socket.close()
        if self.remote is not None:
            with contextlib.suppress(TransferError):
                self.remote.close()

    async def _read(self) -> None:
        while True:
            frames = await self._socket.recv_multipart()
            future = self._waiting.get(frames[0]) if len(frames) == 2 else None
            if future is None or future.done():
                continue
            try:
                future.set_result(wire.decode_reply(frames[1]))
            except TransferError as error:
                future.set_exception(error)


class Fetcher:
    """Fetches embeddings from any number of producers; all methods run in one event loop."""

    def __init__(
        self,
        context: zmq.asyncio.Context,
        fingerprint: Fingerprint,
        transport: Transport,
        store: EmbeddingStore,
        timeout_s: float,
    ) -> None:
        """Land reads in pages of `store`, whose region `transport` has registered."""
        self._context = context
        self._fingerprint = fingerprint
        self._transport = transport
        self._store = store
        self._timeout_s = timeout_s
        self._connections: dict[tuple[str, str], asyncio.Task[Connection]] = {}

    async def fetch(self, handle: wire.EmbeddingHandle) -> torch.Tensor:
        """Bring one embedding into host memory.

        Raises:
            TransferError: the producer is gone, foreign, or does not hold it any more.
        """
        connection = await self._connect(handle)
        asked_at = time.monotonic()
        try:
            reply = await connection.ask(wire.Fetch(handle.key))
        except (TimeoutError, asyncio.CancelledError):
            await self._disconnect(handle)
            raise
        if isinstance(reply, wire.Lost):
            raise EmbeddingLostError(f"{handle.peer}: {reply.reason}")
        if not isinstance(reply, wire.Granted):
            raise PeerError(f"{handle.peer} answered Fetch with {type(reply).__name__}")
        try:
            tensor = await self._read(connection, reply)
        finally:
            await connection.tell(wire.Done(reply.grant))
        if time.monotonic() - asked_at >= reply.grant_s:
            raise EmbeddingLostError(f"the grant of {reply.grant_s:.0f} s ended before the read did")
        return tensor

    async def acknowledge(self, handle: wire.EmbeddingHandle) -> None:
        """Give the lease of `handle` back; a producer that is gone needs no telling."""
        try:
            async with asyncio.timeout(self._timeout_s):
                await (await self._connect(handle)).tell(wire.Acknowledge(handle.lease))
        except (TimeoutError, TransferError) as error:
            logger.info("lease %s is left to run out: %s", handle.lease, error)

    async def close(self) -> None:
        """Close all connections."""
        for task in self._connections.values():
            task.cancel()
        for result in await asyncio.gather(*self._connections.values(), return_exceptions=True):
            if isinstance(result, Connection):
                await result.close()
        self._connections.clear()

    async def _connect(self, handle: wire.EmbeddingHandle) -> Connection:
        place = (handle.peer, handle.epoch)
        if place not in self._connections:
            self._connections[place] = asyncio.create_task(self._greet(*place))
        try:
            return await asyncio.shield(self._connections[place])
        except TransferError:
            self._connections.pop(place, None)
            raise

    async def _disconnect(self, handle: wire.EmbeddingHandle) -> None:
        task = self._connections.pop((handle.peer, handle.epoch), None)
        if task is not None and task.done() and not task.cancelled() and task.exception() is None:
            await task.result().close()

    async def _greet(self, address: str, epoch: str) -> Connection:
        connection = Connection(self._context, address)
        try:
            async with asyncio.timeout(self._timeout_s):
                reply = await connection.ask(
                    wire.Hello(
                        version=wire.WIRE_VERSION,
                        epoch=epoch,
                        fingerprint=self._fingerprint.to_mapping(),
                        transport=self._transport.name,
                    )
                )
            connection.remote = self._accept(address, reply)
        except BaseException as error:
            await connection.close()
            if isinstance(error, TimeoutError):
                raise PeerError(f"no answer from {address} within {self._timeout_s:.0f} s") from error
            raise
        return connection

    def _accept(self, address: str, reply: wire.Reply) -> Peer:
        if not isinstance(reply, wire.Welcome):
            raise PeerError(f"{address} answered Hello with {type(reply).__name__}")
        if differences := self._fingerprint.differences(Fingerprint.from_mapping(reply.fingerprint)):
            raise PeerError(f"{address} has another fingerprint: {'; '.join(differences)}")
        return self._transport.connect(reply.description)

    async def _read(self, connection: Connection, granted: wire.Granted) -> torch.Tensor:
        assert connection.remote is not None
        remote = [Span(*span) for span in granted.spans]
        hold, local = await self._hold(sum(span.length for span in remote))
        try:
            read = self._transport.read(connection.remote, remote, local)
            try:
                while not read.poll():
                    await asyncio.sleep(READ_POLL_S)
            finally:
                read.close()
            return _to_tensor(self._store.region, local, granted)
        finally:
            self._store.forget(hold)

    async def _hold(self, nbytes: int) -> tuple[str, tuple[Span, ...]]:
        while True:
            try:
                return self._store.hold(nbytes, wait_s=0.0)
            except PoolError:
                if nbytes > self._store.region.numel():
                    raise
                await asyncio.sleep(ROOM_POLL_S)


def _to_tensor(region: torch.Tensor, local: Sequence[Span], granted: wire.Granted) -> torch.Tensor:
    dtype = getattr(torch, granted.dtype, None)
    if not isinstance(dtype, torch.dtype):
        raise PeerError(f"unknown dtype {granted.dtype!r}")
    try:
        return copy_out(region, local, granted.shape, dtype)
    except RuntimeError as error:
        raise PeerError(f"shape {granted.shape} of {granted.dtype} does not match its bytes") from error
