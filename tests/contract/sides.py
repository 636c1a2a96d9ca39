# SPDX-License-Identifier: Apache-2.0
"""The two sides of a transport: owners in this process or another one, and what a reader does."""

import os
import signal
import time
from collections.abc import Sequence
from multiprocessing import get_context
from multiprocessing.connection import Connection
from typing import Any

from tests.contract.kinds import Kind, bytes_of, fill, owned_bytes
from vllm_epd.errors import TransferError
from vllm_epd.transfer.base import Peer, Read, Transport
from vllm_epd.transfer.pool import Span
from vllm_epd.transfer.region import Region

LIMIT_S = 20.0
PROGRESS_S = 0.0005
SPAWN = get_context("spawn")


class Child:
    """A function in a process of its own, and the pipe to it."""

    def __init__(self, target: Any, *arguments: Any) -> None:
        self._pipe, theirs = SPAWN.Pipe()
        self._process = SPAWN.Process(target=target, args=(theirs, *arguments), daemon=True)
        self._process.start()
        theirs.close()

    def ask(self, order: Any = None) -> Any:
        """Send `order`, if there is one, and wait for what comes."""
        if order is not None:
            self._pipe.send(order)
        assert self._pipe.poll(LIMIT_S), "a child does not answer"
        return self._pipe.recv()

    def kill(self) -> None:
        os.kill(self._process.pid, signal.SIGKILL)
        self._process.join()

    def end(self) -> int:
        """Its exit code after the pipe has been closed."""
        self._pipe.close()
        self._process.join(LIMIT_S)
        self._process.kill()
        self._process.join()
        return self._process.exitcode


class LocalOwner:
    """Owns a region in this process; has to be helped along while others read."""

    def __init__(self, kind: Kind) -> None:
        self._transport, self._region = kind.make(), kind.region()
        fill(self._region)
        self._transport.register(self._region)
        self.description = self._transport.describe()
        self.progress = self._transport.progress

    def end(self) -> None:
        self._transport.close()
        self._region.close()


class RemoteOwner:
    """Owns a region in a process of its own."""

    def __init__(self, kind: Kind) -> None:
        self._child = Child(_own, kind)
        self.description = self._child.ask()
        self.kill, self.end = self._child.kill, self._child.end

    def progress(self) -> None:
        """It sees to that itself."""

    def close(self) -> None:
        """Have it close its transport and its region, and live on."""
        self._child.ask("close")


def finish(read: Read, owner: LocalOwner | RemoteOwner | None = None) -> None:
    """Poll until all bytes have landed."""
    deadline = time.monotonic() + LIMIT_S
    try:
        while not read.poll():
            if owner is not None:
                owner.progress()
            if time.monotonic() > deadline:
                raise TimeoutError(f"a read has not ended within {LIMIT_S:g} s")
    finally:
        read.close()


def _own(parent: Connection, kind: Kind) -> None:
    transport, region = kind.make(), kind.region()
    fill(region)
    transport.register(region)
    parent.send(transport.describe())
    try:
        while True:
            if not parent.poll(PROGRESS_S):
                transport.progress()
                continue
            parent.recv()
            transport.close()
            region.close()
            parent.send("closed")
    except EOFError:
        transport.close()
        region.close()


def outlive(parent: Connection, kind: Kind, description: bytes) -> None:
    """Read from an owner, and again once the parent says that it is gone; tell what comes of each try."""
    transport, region = kind.make(), kind.region()
    transport.register(region)
    peer = transport.connect(description)
    parent.send(_read_all(transport, peer, region))
    parent.recv()
    parent.send(_read_all(transport, peer, region))
    parent.recv()
    try:
        again = transport.connect(description)
        parent.send(f"connected: {_read_all(transport, again, region)}")
    except TransferError as error:
        parent.send(f"{type(error).__name__}: {error}")
    try:
        peer.close()
    except TransferError as error:
        parent.send(f"{type(error).__name__}: {error}")
    else:
        parent.send("closed")
    transport.close()


def _read_all(transport: Transport, peer: Peer, region: Region) -> str:
    """`bytes` where all that the owner had has come, else what happened."""
    region.tensor.zero_()
    everything: Sequence[Span] = [Span(0, region.nbytes)]
    try:
        finish(transport.read(peer, everything, everything))
    except (TransferError, TimeoutError) as error:
        return type(error).__name__
    return "bytes" if (bytes_of(region) == owned_bytes()).all() else "other bytes"
