# SPDX-License-Identifier: Apache-2.0
"""A consumer's control connection to one producer."""

import asyncio
import contextlib
import itertools
from collections.abc import Iterator, Sequence

import zmq
import zmq.asyncio

from vllm_epd.errors import PeerError, TransferError
from vllm_epd.transfer import wire
from vllm_epd.transfer.base import Read
from vllm_epd.transfer.handshake import Identity
from vllm_epd.transfer.pool import Span
from vllm_epd.transfer.tiers import Link, Tiers

HEARTBEAT_MS = 5000
"""How often a producer is asked for a sign of life, which its ZeroMQ gives without its event loop."""

SILENCE_MS = 15000
"""After which a producer that gives none is gone: its host may not be there to break the connection."""

GONE = zmq.EVENT_DISCONNECTED | zmq.EVENT_CLOSED
"""A connection that stood has ended, or one could not be made: a producer listens before anybody hears of it."""


class Connection:
    """A socket, answers matched to questions, and after `greet` the producer's region. Used in one event loop.

    Questions that a producer leaves open when it goes fail at once.
    """

    def __init__(self, context: zmq.asyncio.Context, address: str) -> None:
        """Connect the socket; nothing is said yet.

        Raises:
            PeerError: `address` is no ZeroMQ address.
        """
        self.address = address
        self._socket = context.socket(zmq.DEALER)
        self._socket.setsockopt(zmq.LINGER, 0)
        self._socket.setsockopt(zmq.HEARTBEAT_IVL, HEARTBEAT_MS)
        self._socket.setsockopt(zmq.HEARTBEAT_TIMEOUT, SILENCE_MS)
        self._events = self._socket.get_monitor_socket(GONE)
        try:
            self._socket.connect(address)
        except zmq.ZMQError as error:
            self._close_sockets()
            raise PeerError(f"{address!r} is no address of a peer: {error}") from error
        self._ids = itertools.count(1)
        self._waiting: dict[bytes, asyncio.Future[wire.Reply]] = {}
        self._gone = False
        self._tasks = [asyncio.create_task(each) for each in (self._read(), self._watch())]
        self._link: Link | None = None
        self._reads = 0
        self._unread = asyncio.Event()
        self._unread.set()

    @property
    def tier(self) -> str:
        """The transport that reaches the producer; only after `greet`."""
        return self._greeted().transport.name

    async def greet(self, identity: Identity, producer: str, tiers: Tiers) -> None:
        """Prove to each other who is there and connect over the best tier; the caller sets the time limit.

        Raises:
            PeerError: the producer refuses, is not the one of epoch `producer`, or no tier reaches it.
        """
        hello = identity.hello(producer, tiers.names)
        challenge = await self.ask(hello)
        if not isinstance(challenge, wire.Challenge):
            raise self._unexpected("Hello", challenge)
        welcome = await self.ask(identity.prove(hello, challenge))
        if not isinstance(welcome, wire.Welcome):
            raise self._unexpected("Proof", welcome)
        identity.accept(welcome, producer)
        self._link = tiers.connect(welcome.tiers)

    async def fetch(self, key: str, *, wait: bool = False) -> wire.Granted | wire.Lost:
        """Ask for a grant to read `key`, with `wait` as soon as it is there; the caller sets the time limit.

        Raises:
            PeerError: the producer refuses.
        """
        reply = await self.ask(wire.Fetch(key, self.tier, wait))
        if not isinstance(reply, wire.Granted | wire.Lost):
            raise self._unexpected("Fetch", reply)
        return reply

    async def list_transfer(self, transfer: str) -> wire.Listed | wire.Lost:
        """Ask for the items of a transfer; the caller sets the time limit.

        Raises:
            PeerError: the producer refuses.
        """
        reply = await self.ask(wire.AskTransfer(transfer))
        if not isinstance(reply, wire.Listed | wire.Lost):
            raise self._unexpected("AskTransfer", reply)
        return reply

    @contextlib.contextmanager
    def reading(self, remote: Sequence[Span], local: Sequence[Span]) -> Iterator[Read]:
        """A read, started; the producer's region stays connected for the length of the `with` block.

        Raises:
            TransferError: it cannot be started.
        """
        read = self._greeted().read(remote, local)
        self._reads += 1
        self._unread.clear()
        try:
            yield read
        finally:
            self._reads -= 1
            if not self._reads:
                self._unread.set()

    async def ask(self, request: wire.Request) -> wire.Reply:
        """Send `request` and wait for its answer; the caller sets the time limit.

        Raises:
            PeerError: the producer refuses.
        """
        request_id = str(next(self._ids)).encode()
        if self._gone:
            raise self._lost()
        future: asyncio.Future[wire.Reply] = asyncio.get_running_loop().create_future()
        self._waiting[request_id] = future
        try:
            await self._socket.send_multipart([request_id, wire.encode(request)])
            reply = await future
        except zmq.ZMQError as error:
            raise PeerError(f"{self.address} cannot be asked: {error}") from error
        finally:
            del self._waiting[request_id]
        if isinstance(reply, wire.Refused):
            raise PeerError(f"{self.address} refused: {reply.reason}")
        return reply

    async def tell(self, request: wire.Request) -> None:
        """Send `request`, which has no answer; never waits.

        Raises:
            PeerError: closed in the meantime, or the producer has taken no messages for long.
        """
        try:
            await self._socket.send_multipart([b"", wire.encode(request)], flags=zmq.NOBLOCK)
        except zmq.ZMQError as error:
            raise PeerError(f"{self.address} cannot be told: {error}") from error

    async def close(self) -> None:
        """Close the socket, and forget the remote region once nobody reads from it any more.

        Questions that have no answer yet fail.
        """
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._close_sockets()
        self._fail_all(PeerError(f"the connection to {self.address} was closed"))
        await self._unread.wait()
        link, self._link = self._link, None
        if link is not None:
            with contextlib.suppress(TransferError):
                link.close()

    async def _read(self) -> None:
        while True:
            frames = await self._socket.recv_multipart()
            if len(frames) != 2:
                continue
            future = self._waiting.get(frames[0])
            try:
                reply = wire.decode_reply(frames[1])
            except (TransferError, ValueError, RecursionError) as error:
                if future is not None and not future.done():
                    future.set_exception(PeerError(f"{self.address} sent what is no answer: {error}"))
                continue
            if future is not None and not future.done():
                future.set_result(reply)
            elif isinstance(reply, wire.Granted):
                # Whoever asked for it has gone.
                with contextlib.suppress(PeerError):
                    await self.tell(wire.Done(reply.grant))

    async def _watch(self) -> None:
        await self._events.recv_multipart()
        self._gone = True
        self._fail_all(self._lost())

    def _close_sockets(self) -> None:
        if not self._socket.closed:
            self._socket.disable_monitor()
            self._events.close()
            self._socket.close()

    def _fail_all(self, error: PeerError) -> None:
        for future in self._waiting.values():
            if not future.done():
                future.set_exception(error)

    def _lost(self) -> PeerError:
        return PeerError(f"{self.address} is gone")

    def _greeted(self) -> Link:
        if self._link is None:
            raise PeerError(f"{self.address} is not connected")
        return self._link

    def _unexpected(self, asked: str, reply: wire.Reply) -> PeerError:
        return PeerError(f"{self.address} answered {asked} with {type(reply).__name__}")
