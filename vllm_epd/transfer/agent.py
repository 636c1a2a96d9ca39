# SPDX-License-Identifier: Apache-2.0
"""The transfer agent of one worker: a thread that serves what the worker offers and fetches what it needs.

Nothing here waits for an engine step, and no engine step waits for the network: the model's thread hands over and
takes away tensors under short locks, the agent's event loop does the rest.
"""

import asyncio
import logging
import threading
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field

import msgspec
import torch
import zmq
import zmq.asyncio

from vllm_epd.errors import TransferError
from vllm_epd.transfer.commands import Commands
from vllm_epd.transfer.expectations import Expectations
from vllm_epd.transfer.fetch import Fetcher
from vllm_epd.transfer.handshake import Identity
from vllm_epd.transfer.items import StoredItem
from vllm_epd.transfer.landings import Landings, Offers, Room
from vllm_epd.transfer.packing import Packing
from vllm_epd.transfer.peers import PeerBook
from vllm_epd.transfer.pool import PAGE_BYTES
from vllm_epd.transfer.serve import Server
from vllm_epd.transfer.store import EmbeddingStore
from vllm_epd.transfer.tiers import Tiers, TransferMemory, open_tiers
from vllm_epd.transfer.wire import PoolState, Reply, encode

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class AgentConfig:
    """How one agent runs.

    Attributes:
        identity: of the instance this agent belongs to; peers with another secret or fingerprint are refused.
        command: ZeroMQ address on which the processes of the instance give commands.
        listen: ZeroMQ address to serve peers on; None for an agent that only fetches.
        memory: the region for what is offered and what has landed, and what moves it.
        page_bytes: size of the region's pages.
        lease_s: how long what is offered waits for its consumer.
        timeout_s: how long a fetch, or a wait for room, may take before it fails.
        packing: in which form embeddings are offered, and how they are checked.
    """

    identity: Identity
    command: str
    listen: str | None
    memory: TransferMemory
    page_bytes: int = PAGE_BYTES
    lease_s: float = 60.0
    timeout_s: float = 30.0
    packing: Packing = field(default_factory=Packing)


class TransferAgent:
    """Owns the region, the transports and the event loop of one worker.

    `store` is for the model's thread to offer into, `load` for it to use what has landed.
    """

    store: EmbeddingStore
    _landings: Landings

    def __init__(self, config: AgentConfig) -> None:
        """Allocate and register the region and start the thread; returns once it serves.

        Raises:
            TransferError: no transport starts, or an address is taken.
        """
        self._config = config
        self._loop = asyncio.new_event_loop()
        self._stop = asyncio.Event()
        started = _Start()
        self._thread = threading.Thread(target=self._run, args=(started,), name="epd-transfer", daemon=True)
        self._thread.start()
        started.wait()

    def load(self, landing: int, key: str, device: torch.device) -> torch.Tensor:
        """A copy on `device` of what has landed; counts as one of the loads that `Drop` waits for.

        Raises:
            EmbeddingLostError: it has not landed, or was dropped.
        """
        return self._landings.load(landing, key, device)

    def read(
        self, landing: int, key: str, use: Callable[[StoredItem, Sequence[torch.Tensor]], None], *, on_device: bool
    ) -> None:
        """Have `use` read what has landed where it lies, see `EmbeddingStore.read`; counts as a load.

        Raises:
            EmbeddingLostError: it has not landed, or was dropped.
        """
        self._landings.read(landing, key, use, on_device=on_device)

    def close(self) -> None:
        """Stop the thread and free the region; a second call does nothing."""
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._stop.set)
            self._thread.join(timeout=10)

    def _run(self, started: "_Start") -> None:
        try:
            tiers = open_tiers(self._config.memory)
            try:
                self.store = EmbeddingStore(tiers.region, self._config.page_bytes, self._config.packing)
                self._loop.run_until_complete(self._serve(tiers, started))
            finally:
                tiers.close()
        except TransferError as error:
            started.failed(error)
        except BaseException as error:
            started.failed(TransferError(f"the agent has ended: {type(error).__name__}: {error}"))
            raise
        finally:
            self._loop.close()

    async def _serve(self, tiers: Tiers, started: "_Start") -> None:
        config = self._config
        with zmq.asyncio.Context() as context:
            peers, room = PeerBook(), Room(self.store)
            fetcher = Fetcher(context, config.identity, tiers, peers, config.timeout_s)
            self._landings = Landings(self.store, fetcher, room)
            offers = Offers(self.store, self._landings, room, config.lease_s, config.timeout_s)
            server = Server(
                config.identity,
                tiers,
                self.store,
                config.timeout_s,
                offers.listed,
                checksums=config.packing.checksum,
            )
            expectations = Expectations(self.store, self._landings, fetcher, config.lease_s)
            commands = Commands(
                self._landings, offers, expectations, fetcher, peers, config.timeout_s, self._pool_state(server, tiers)
            )
            try:
                orders = _bind(context, config.command)
                listener = _bind(context, config.listen) if config.listen else None
            except zmq.ZMQError as error:
                context.destroy(linger=0)
                raise TransferError(f"cannot bind {config.listen or config.command}: {error}") from error
            logger.info("transfers over %s", ", ".join(tiers.names))
            started.done()
            serving = [commands.obey(orders)]
            if listener is not None:
                serving += [_answer(listener, server), server.progress()]
            self._serving = [asyncio.create_task(each) for each in serving]
            await self._stop.wait()
            await _end_all_tasks()
            await fetcher.close()
            context.destroy(linger=0)

    def _pool_state(self, server: Server, tiers: Tiers) -> Callable[[], PoolState]:
        return lambda: msgspec.structs.replace(self.store.state(), refused=server.refused, tiers=tiers.names)


async def _answer(listener: zmq.asyncio.Socket, server: Server) -> None:
    """Serve requests for ever: frames are [visitor, request id, message]; an empty id wants no answer."""
    running: set[asyncio.Task[None]] = set()
    while True:
        frames = await listener.recv_multipart()
        if len(frames) != 3:
            logger.warning("ignored a message of %d frames from a peer, expected 3", len(frames))
            continue
        task = asyncio.create_task(_reply(listener, server.handle, *frames))
        running.add(task)
        task.add_done_callback(running.discard)


async def _reply(
    listener: zmq.asyncio.Socket,
    handle: Callable[[bytes, bytes], Awaitable[Reply | None]],
    visitor: bytes,
    request_id: bytes,
    frame: bytes,
) -> None:
    reply = await handle(visitor, frame)
    if reply is not None and request_id:
        await listener.send_multipart([visitor, request_id, encode(reply)])


async def _end_all_tasks() -> None:
    """No read may be on its way any more when the region is freed."""
    others = asyncio.all_tasks() - {asyncio.current_task()}
    for task in others:
        task.cancel()
    await asyncio.gather(*others, return_exceptions=True)


def _bind(context: zmq.asyncio.Context, address: str) -> zmq.asyncio.Socket:
    socket = context.socket(zmq.ROUTER)
    socket.setsockopt(zmq.LINGER, 0)
    socket.bind(address)
    return socket


class _Start:
    """One-shot hand-over of success or failure from the agent's thread to its maker."""

    def __init__(self) -> None:
        self._event = threading.Event()
        self._error: TransferError | None = None

    def done(self) -> None:
        self._event.set()

    def failed(self, error: TransferError) -> None:
        self._error = error
        self._event.set()

    def wait(self) -> None:
        self._event.wait()
        if self._error is not None:
            raise self._error
