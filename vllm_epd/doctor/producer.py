# SPDX-License-Identifier: Apache-2.0
"""The instance that offers, in this process or in one of its own."""

import contextlib
import signal
import socket
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from multiprocessing import get_context
from multiprocessing.connection import Connection
from uuid import uuid4

from vllm_epd.doctor.items import KEYS_PER_SIZE, PRODUCER_EPOCH, content, identity, keys
from vllm_epd.errors import TransferError
from vllm_epd.transfer.agent import AgentConfig, TransferAgent
from vllm_epd.transfer.tiers import AUTO, TransferMemory

STOP_S = 10.0


@dataclass(frozen=True, slots=True)
class Offer:
    """What a producer offers, and how.

    Attributes:
        listen: ZeroMQ address to serve on.
        sizes: of the items, in bytes; several items of each.
        device: see `TransferMemory`.
        transport: see `TransferMemory`.
        backend: see `TransferMemory`.
    """

    listen: str
    sizes: tuple[int, ...]
    device: str = "cpu"
    transport: str = AUTO
    backend: str = "UCX"

    @property
    def memory(self) -> TransferMemory:
        """Room for all items."""
        return TransferMemory(KEYS_PER_SIZE * sum(self.sizes), self.device, self.transport, self.backend)


def start_producer(offer: Offer) -> TransferAgent:
    """An agent with all items of `offer` in its store.

    Raises:
        TransferError: no transport starts, or the address is taken.
    """
    command = f"ipc://@epd-doctor-{uuid4().hex}"
    agent = TransferAgent(AgentConfig(identity(PRODUCER_EPOCH), command, offer.listen, offer.memory))
    for nbytes in offer.sizes:
        for key in keys(nbytes):
            agent.store.put(key, content(key, nbytes))
    return agent


@contextlib.contextmanager
def producer_process(offer: Offer) -> Iterator[None]:
    """A producer in a process of its own, as long as the context is open.

    Raises:
        TransferError: it does not start; the message says why.
    """
    context = get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_offer, args=(theirs, offer), name="epd-doctor-producer", daemon=True)
    process.start()
    theirs.close()
    try:
        _await_start(ours)
        yield
    finally:
        ours.close()
        process.join(STOP_S)
        process.kill()


def free_address(host: str = "127.0.0.1") -> str:
    """A ZeroMQ address of this machine on which nobody listens at the moment."""
    with socket.socket() as probe:
        probe.bind((host, 0))
        return f"tcp://{host}:{probe.getsockname()[1]}"


def describe_sizes(sizes: Sequence[int]) -> str:
    """Such as `64 KiB and 16 MiB`."""
    return " and ".join(format_size(nbytes) for nbytes in sizes)


def format_size(nbytes: int) -> str:
    """Such as `64 KiB`."""
    return f"{nbytes >> 20} MiB" if nbytes >= 1 << 20 else f"{nbytes >> 10} KiB"


def _offer(parent: Connection, offer: Offer) -> None:
    """Offer until the parent closes its end or is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        agent = start_producer(offer)
    except TransferError as error:
        parent.send(str(error))
        return
    parent.send(None)
    with contextlib.suppress(EOFError):
        parent.recv()
    agent.close()


def _await_start(child: Connection) -> None:
    try:
        problem = child.recv()
    except EOFError as error:
        raise TransferError("the other instance ended while it started") from error
    if problem is not None:
        raise TransferError(f"the other instance does not start: {problem}")
