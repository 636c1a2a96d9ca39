# SPDX-License-Identifier: Apache-2.0
"""The consumer's side: connect to a producer once, then grant, read, done for each embedding."""

import asyncio
import contextlib
import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
import zmq.asyncio

from vllm_epd.errors import EmbeddingLostError, PeerError, StuckReadError, TransferError
from vllm_epd.transfer import wire
from vllm_epd.transfer.base import Read
from vllm_epd.transfer.codec import CODECS, NONE, item_bytes
from vllm_epd.transfer.connection import Connection
from vllm_epd.transfer.handshake import Identity
from vllm_epd.transfer.peers import PeerBook
from vllm_epd.transfer.pool import Span
from vllm_epd.transfer.tiers import Tiers

logger = logging.getLogger(__name__)

MAX_DIMS = 64
"""Torch's own limit; the product of more would only cost time."""
READ_POLL_S = 0.0002
DRAIN_S = 10.0
SPIN_S = 0.001
"""How long a read is polled without a pause: a small one is over before a timer would ring."""

Answer = TypeVar("Answer")

_Place = tuple[str, int]
"""Epoch and data-parallel rank of a producer."""


@dataclass(frozen=True, slots=True)
class Fetched:
    """What the bytes of a fetched embedding are, and what they should add up to if the producer says so."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    codec: str
    checksum: int | None


class Fetcher:
    """Fetches embeddings from any number of producers; all methods run in one event loop."""

    def __init__(
        self,
        context: zmq.asyncio.Context,
        identity: Identity,
        tiers: Tiers,
        peers: PeerBook,
        timeout_s: float,
    ) -> None:
        """Connect, as `identity`, to those in `peers`; `timeout_s` bounds the handshake with each."""
        self._context = context
        self._identity = identity
        self._tiers = tiers
        self._peers = peers
        self._timeout_s = timeout_s
        self._connections: dict[_Place, asyncio.Task[Connection]] = {}

    async def fetch(self, handle: wire.EmbeddingHandle, local: Sequence[Span], *, wait: bool = False) -> Fetched:
        """Bring the bytes of one embedding to `local`, as long as it is; the caller sets the time limit.

        With `wait`, as soon as the producer has made it.

        Raises:
            EmbeddingLostError: the producer does not hold it any more.
            TransferError: the producer is gone, foreign or not registered.
        """
        connection, asked_at, granted = await self._granted(handle, wait)
        try:
            fetched = _described(granted, handle.nbytes)
            with connection.reading([Span(*span) for span in granted.spans], local) as read:
                await _carry_out(read)
        finally:
            with contextlib.suppress(PeerError):
                await connection.tell(wire.Done(granted.grant))
        if time.monotonic() - asked_at >= granted.grant_s:
            raise EmbeddingLostError(f"the grant of {granted.grant_s:.1f} s ended before the read did")
        return fetched

    async def acknowledge(self, handle: wire.EmbeddingHandle) -> None:
        """Give the lease of `handle` back; a producer that is gone needs no telling."""
        try:
            async with asyncio.timeout(self._timeout_s):
                await (await self._connect((handle.epoch, handle.rank))).tell(wire.Acknowledge(handle.lease))
        except (TimeoutError, TransferError) as error:
            logger.info("lease %s is left to run out: %s", handle.lease, error)

    async def forget_strangers(self) -> None:
        """Let go of those that are not registered any more, and of their memory."""
        for place, connection in self._connected():
            if place[0] not in self._peers:
                await self._disconnect(place, connection)

    async def close(self) -> None:
        """Close all connections."""
        greeting = [task for task in self._connections.values() if not task.done()]
        for task in greeting:
            task.cancel()
        await asyncio.gather(*greeting, return_exceptions=True)
        for place, connection in self._connected():
            await self._disconnect(place, connection)

    async def list_transfer(self, transfer: str, epoch: str, rank: int) -> list[tuple[str, int]]:
        """Keys and sizes of the items of a transfer, once its producer knows; the caller sets the time limit.

        Raises:
            EmbeddingLostError: the producer does not know it.
            TransferError: the producer is gone, foreign or not registered.
        """
        connection, _, reply = await self._ask((epoch, rank), lambda connection: connection.list_transfer(transfer))
        if isinstance(reply, wire.Lost):
            raise EmbeddingLostError(f"{connection.address}: {reply.reason}")
        return reply.items

    async def _granted(self, handle: wire.EmbeddingHandle, wait: bool) -> tuple[Connection, float, wire.Granted]:
        """The producer's leave to read, and when at the earliest it was given."""
        connection, asked_at, reply = await self._ask(
            (handle.epoch, handle.rank), lambda connection: connection.fetch(handle.key, wait=wait)
        )
        if isinstance(reply, wire.Lost):
            raise EmbeddingLostError(f"{connection.address}: {reply.reason}")
        # Nobody knows when an answer that has waited was given; half of the grant is left for its way here.
        return connection, time.monotonic() - reply.grant_s / 2 if wait else asked_at, reply

    async def _ask(
        self, place: _Place, question: Callable[[Connection], Awaitable[Answer]]
    ) -> tuple[Connection, float, Answer]:
        """The producer's answer and when it was asked, on a new connection if it does not know the old one any more."""
        known = place in self._connections
        connection = await self._connect(place)
        asked_at = time.monotonic()
        try:
            return connection, asked_at, await question(connection)
        except PeerError:
            await self._disconnect(place, connection)
            if not known:
                raise
        connection = await self._connect(place)
        asked_at = time.monotonic()
        return connection, asked_at, await question(connection)

    async def _connect(self, place: _Place) -> Connection:
        if place not in self._connections:
            task = self._connections[place] = asyncio.create_task(self._greeted(*place))
            task.add_done_callback(lambda task: self._forget_failed(place, task))
        return await asyncio.shield(self._connections[place])

    def _forget_failed(self, place: _Place, task: asyncio.Task[Connection]) -> None:
        if not _succeeded(task) and self._connections.get(place) is task:
            del self._connections[place]

    def _connected(self) -> list[tuple[_Place, Connection]]:
        return [(place, task.result()) for place, task in self._connections.items() if _succeeded(task)]

    async def _disconnect(self, place: _Place, connection: Connection) -> None:
        """Close `connection`, and leave alone a newer one in its place."""
        if (place, connection) in self._connected():
            del self._connections[place]
        await connection.close()

    async def _greeted(self, epoch: str, rank: int) -> Connection:
        address = await self._peers.address(epoch, self._identity.shard.agent(rank))
        connection = Connection(self._context, address)
        try:
            async with asyncio.timeout(self._timeout_s):
                await connection.greet(self._identity, epoch, self._tiers)
            if epoch not in self._peers:
                raise PeerError(f"the instance of epoch {epoch!r} is not registered any more")
        except BaseException as error:
            await connection.close()
            if isinstance(error, TimeoutError):
                raise PeerError(f"no answer from {address} within {self._timeout_s:.0f} s") from error
            if isinstance(error, TransferError):
                logger.warning("no connection to %s: %s", address, error)
            raise
        logger.info("connected to %s over %s", address, connection.tier)
        return connection


def _succeeded(task: asyncio.Task[Connection]) -> bool:
    return task.done() and not task.cancelled() and task.exception() is None


async def _carry_out(read: Read) -> None:
    """Return once all bytes have landed, or, when that fails or is cancelled, once no more will.

    Raises:
        StuckReadError: bytes may still land at any time.
    """
    try:
        await _completed(read)
    except TransferError:
        read.close()
        raise
    except BaseException:
        await _drain(read)
        raise
    read.close()


async def _completed(read: Read) -> None:
    """Poll without keeping the event loop from others."""
    spin_until = time.monotonic() + SPIN_S
    while not read.poll():
        pause = 0.0 if read.works_in_poll or time.monotonic() < spin_until else READ_POLL_S
        await asyncio.sleep(pause)


async def _drain(read: Read) -> None:
    """End a read that nobody waits for any more."""
    if not read.works_in_poll:
        try:
            async with asyncio.timeout(DRAIN_S):
                await _completed(read)
        except TimeoutError as error:
            raise StuckReadError(f"a read was given up and has not ended within {DRAIN_S:.0f} s") from error
        except TransferError as error:
            logger.info("a read that was given up failed: %s", error)
    read.close()


def _described(granted: wire.Granted, nbytes: int) -> Fetched:
    """What is granted, if it is the embedding that was announced.

    Raises:
        PeerError: it is not, or makes no sense.
    """
    dtype = vars(torch).get(granted.dtype)
    if not isinstance(dtype, torch.dtype):
        raise PeerError(f"unknown dtype {granted.dtype!r}")
    size = sum(length for _, length in granted.spans)
    if size != nbytes:
        raise PeerError(f"an embedding of {nbytes} bytes was announced, {size} are offered")
    if not granted.grant_s > 0:
        raise PeerError(f"a grant of {granted.grant_s} s")
    if len(granted.shape) > MAX_DIMS:
        raise PeerError(f"a shape of {len(granted.shape)} dimensions")
    if granted.codec not in CODECS:
        raise PeerError(f"unknown codec {granted.codec!r}, this instance knows {', '.join(CODECS)}")
    if any(extent < 0 for extent in granted.shape) or item_bytes(granted.shape, dtype, granted.codec) != size:
        as_codec = "" if granted.codec == NONE else f" as {granted.codec}"
        raise PeerError(f"shape {granted.shape} of {granted.dtype}{as_codec} does not match {size} bytes")
    return Fetched(tuple(granted.shape), dtype, granted.codec, granted.checksum)
