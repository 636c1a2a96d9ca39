# SPDX-License-Identifier: Apache-2.0
"""The transfer agent of one worker: a thread that serves what the worker offers and fetches what it needs.

Nothing here waits for an engine step, and no engine step waits for the network: the model's thread hands over and
takes away tensors under short locks, the agent's event loop does the rest.
"""

import asyncio
import contextlib
import logging
import threading
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import torch
import zmq
import zmq.asyncio

from vllm_epd.errors import TransferError
from vllm_epd.transfer import wire
from vllm_epd.transfer.base import Transport
from vllm_epd.transfer.fetch import Fetcher
from vllm_epd.transfer.serve import Server
from vllm_epd.transfer.store import EmbeddingStore
from vllm_epd.types import Fingerprint

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class AgentConfig:
    """How one agent runs.

    Attributes:
        epoch: of the instance this agent belongs to.
        fingerprint: of the instance; peers with another one are refused, both ways.
        command: ZeroMQ address on which the scheduler half beside it gives commands.
        listen: ZeroMQ address to serve on; None for an agent that only fetches.
        pool_bytes: size of the region for what is offered and what is landing.
        page_bytes: size of its pages.
        fetch_timeout_s: how long one fetch may take before it fails.
        pinned: whether the region is page-locked, for copies from and to a device.
    """

    epoch: str
    fingerprint: Fingerprint
    command: str
    listen: str | None
    pool_bytes: int
    page_bytes: int = 64 * 1024
    fetch_timeout_s: float = 30.0
    pinned: bool = False


class TransferAgent:
    """Owns the region, the transport and the event loop of one worker.

    `store` is for the model's thread to offer into; `landed` and `drop` are for it to use what has landed.
    """

    def __init__(self, config: AgentConfig, make_transport: Callable[[], Transport]) -> None:
        """Allocate and register the region and start the thread; returns once it serves.

        Raises:
            TransferError: the transport does not start, or an address is taken.
        """
        self._config = config
        self.store = EmbeddingStore(config.pool_bytes, config.page_bytes, pinned=config.pinned)
        self._landed: dict[int, torch.Tensor] = {}
        self._lock = threading.Lock()
        self._loop = asyncio.new_event_loop()
        self._stop = asyncio.Event()
        started: _Start = _Start()
        self._thread = threading.Thread(
            target=self._run, args=(make_transport, started), name="epd-transfer", daemon=True
        )
        self._thread.start()
        started.wait()

    def landed(self, landing: int) -> torch.Tensor:
        """The tensor that has landed as `landing`; it stays until `drop`.

        Raises:
            KeyError: it has not landed, or was dropped.
        """
        with self._lock:
            return self._landed[landing]

    def drop(self, landing: int) -> None:
        """Forget what has landed as `landing`."""
        with self._lock:
            self._landed.pop(landing, None)

    def close(self) -> None:
        """Stop the thread and deregister the region; a second call does nothing."""
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._stop.set)
            self._thread.join(timeout=10)

    def _run(self, make_transport: Callable[[], Transport], started: "_Start") -> None:
        try:
            transport = make_transport()
            transport.register(self.store.region)
        except TransferError as error:
            started.failed(error)
            return
        try:
            self._loop.run_until_complete(self._serve(transport, started))
        finally:
            with contextlib.suppress(TransferError):
                transport.close()
            self._loop.close()

    async def _serve(self, transport: Transport, started: "_Start") -> None:
        config = self._config
        with zmq.asyncio.Context() as context:
            server = Server(config.epoch, config.fingerprint, transport, self.store, config.fetch_timeout_s)
            fetcher = Fetcher(context, config.fingerprint, transport, self.store, config.fetch_timeout_s)
            try:
                commands = _bind(context, config.command)
                listener = _bind(context, config.listen) if config.listen else None
            except zmq.ZMQError as error:
                context.destroy(linger=0)
                started.failed(TransferError(f"cannot bind {config.listen or config.command}: {error}"))
                return
            started.done()
            tasks = [asyncio.create_task(self._obey(commands, fetcher))]
            if listener is not None:
                tasks += [
                    asyncio.create_task(_answer(listener, server)),
                    asyncio.create_task(server.progress()),
                ]
            await self._stop.wait()
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await fetcher.close()
            context.destroy(linger=0)

    async def _obey(self, commands: zmq.asyncio.Socket, fetcher: Fetcher) -> None:
        running: set[asyncio.Task[None]] = set()
        while True:
            sender, frame = await commands.recv_multipart()
            try:
                command = wire.decode_command(frame)
            except TransferError as error:
                logger.error("ignored a command: %s", error)
                continue
            task = asyncio.create_task(self._do(command, fetcher, commands, sender))
            running.add(task)
            task.add_done_callback(running.discard)

    async def _do(self, command: wire.Command, fetcher: Fetcher, commands: zmq.asyncio.Socket, sender: bytes) -> None:
        if isinstance(command, wire.Release):
            await fetcher.acknowledge(command.handle)
            return
        report = self.store.state() if isinstance(command, wire.AskPool) else await self._pull(command, fetcher)
        await commands.send_multipart([sender, wire.encode(report)])

    async def _pull(self, pull: wire.Pull, fetcher: Fetcher) -> wire.Report:
        try:
            async with asyncio.timeout(self._config.fetch_timeout_s):
                tensor = await fetcher.fetch(pull.handle)
        except TimeoutError:
            return wire.PullFailed(pull.landing, f"no answer from {pull.handle.peer} in time")
        except TransferError as error:
            return wire.PullFailed(pull.landing, str(error))
        except Exception as error:  # noqa: BLE001  without a report the request would wait for ever
            logger.exception("fetching %s failed", pull.handle.key)
            return wire.PullFailed(pull.landing, f"{type(error).__name__}: {error}")
        with self._lock:
            self._landed[pull.landing] = tensor
        return wire.Pulled(pull.landing, tensor.nbytes)


async def _answer(listener: zmq.asyncio.Socket, server: Server) -> None:
    """Serve requests for ever: frames are [identity, request id, message]; an empty id wants no answer."""
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
    handle: Callable[[bytes, bytes], Awaitable[wire.Reply | None]],
    identity: bytes,
    request_id: bytes,
    frame: bytes,
) -> None:
    reply = await handle(identity, frame)
    if reply is not None and request_id:
        await listener.send_multipart([identity, request_id, wire.encode(reply)])


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
