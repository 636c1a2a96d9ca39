# SPDX-License-Identifier: Apache-2.0
"""Transport between processes of one host, in host memory: the reader maps the owner's region and copies.

The region's descriptor is handed over a Unix socket to processes of the same user. Its name is random and abstract, so
it exists only where the owner lives: in this network namespace of this host. Nothing appears in a file system; the
kernel frees the memory with its last user.
"""

import contextlib
import ctypes
import errno
import fcntl
import mmap
import os
import socket
import struct
import threading
import time
from collections.abc import Sequence
from typing import ClassVar
from uuid import uuid4

import msgspec
import numpy as np

from vllm_epd.errors import PeerError, TransferError
from vllm_epd.transfer.base import Peer, Read, Transport, check_bounds, pair_spans
from vllm_epd.transfer.pool import Span
from vllm_epd.transfer.region import Region

CHUNK_BYTES = 8 * 2**20
"""What one poll copies, about a millisecond's worth."""

HANDOVER_S = 2.0
BUSY = (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS, errno.ECONNABORTED)
"""Errors of `accept` that pass."""

RETRY_S = 0.05
PEER_CREDENTIALS = struct.Struct("3i")
FIXED_SIZE = fcntl.F_SEAL_SHRINK


class _Description(msgspec.Struct, frozen=True):
    socket: str
    nbytes: int


class ShmPeer(Peer):
    """Another process's region, mapped for reading."""

    def __init__(self, memory: mmap.mmap) -> None:
        self._bytes: np.ndarray | None = np.frombuffer(memory, dtype=np.uint8)
        self.nbytes = len(memory)

    @property
    def mapping(self) -> np.ndarray:
        """The bytes; they stay mapped as long as somebody refers to them."""
        if self._bytes is None:
            raise TransferError("the peer is closed")
        return self._bytes

    def close(self) -> None:
        self._bytes = None


class ShmRead(Read):
    """A copy, cut into pieces that do not keep an event loop waiting."""

    works_in_poll = True

    def __init__(self, mapping: np.ndarray, target: int, pairs: Sequence[tuple[Span, Span]]) -> None:
        self._mapping: np.ndarray | None = mapping
        source = int(mapping.ctypes.data)
        self._moves = [
            (target + there.offset + done, source + here.offset + done, min(CHUNK_BYTES, here.length - done))
            for here, there in reversed(pairs)
            for done in reversed(range(0, here.length, CHUNK_BYTES))
        ]

    def poll(self) -> bool:
        budget = CHUNK_BYTES
        while self._moves and budget > 0:
            target, source, length = self._moves.pop()
            ctypes.memmove(target, source, length)
            budget -= length
        return not self._moves

    def close(self) -> None:
        self._moves.clear()
        self._mapping = None


class ShmTransport(Transport):
    """Copies out of regions that other processes of this user and host own."""

    name: ClassVar[str] = "shm"

    def __init__(self) -> None:
        self._region: Region | None = None
        self._listener: socket.socket | None = None
        self._name = f"epd-{uuid4().hex}"
        self._closed = False

    def register(self, region: Region) -> None:
        if self._region is not None or self._closed:
            raise TransferError("a ShmTransport registers one region, once")
        if region.fd is None:
            raise TransferError("shm needs a region in host memory that other processes can map")
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            listener.bind(f"\0{self._name}")
            listener.listen()
        except OSError as error:
            listener.close()
            raise TransferError(f"shm cannot listen: {error}") from error
        self._region, self._listener = region, listener
        # A descriptor of the thread's own: the region's number may soon be another file's once the region is closed.
        arguments = (listener, os.dup(region.fd))
        threading.Thread(target=_hand_over, args=arguments, name="epd-shm", daemon=True).start()

    def describe(self) -> bytes:
        return msgspec.msgpack.encode(_Description(self._name, self._own_region().nbytes))

    def connect(self, description: bytes) -> Peer:
        self._own_region()
        try:
            remote = msgspec.msgpack.decode(description, type=_Description)
        except msgspec.DecodeError as error:
            raise PeerError(f"the peer's shm description does not decode: {error}") from error
        fd = _take_over(remote.socket)
        try:
            return _map(fd, remote.nbytes)
        finally:
            os.close(fd)

    def read(self, peer: Peer, remote: Sequence[Span], local: Sequence[Span]) -> Read:
        if not isinstance(peer, ShmPeer):
            raise TransferError(f"a ShmTransport reads from its own peers, not from {type(peer).__name__}")
        own = self._own_region()
        check_bounds(remote, peer.nbytes)
        check_bounds(local, own.nbytes)
        return ShmRead(peer.mapping, own.tensor.data_ptr(), pair_spans(remote, local))

    def close(self) -> None:
        self._closed = True
        if self._listener is not None:
            listener, self._listener = self._listener, None
            # Wakes the thread that accepts, which `close` alone does not.
            with contextlib.suppress(OSError):
                listener.shutdown(socket.SHUT_RDWR)
            listener.close()
            self._region = None

    def _own_region(self) -> Region:
        if self._region is None:
            raise TransferError("register a region first")
        return self._region


def _hand_over(listener: socket.socket, fd: int) -> None:
    """Give `fd` to each process of this user that asks, until the listener is closed; then close it."""
    while True:
        try:
            connection, _ = listener.accept()
        except OSError as error:
            if error.errno in BUSY:
                time.sleep(RETRY_S)
                continue
            os.close(fd)
            return
        with connection, contextlib.suppress(OSError):
            connection.settimeout(HANDOVER_S)
            if _same_user(connection):
                socket.send_fds(connection, [b"\0"], [fd])


def _take_over(name: str) -> int:
    """The descriptor that the owner of the socket gives.

    Raises:
        PeerError: nobody of this user listens there.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(HANDOVER_S)
        try:
            connection.connect(f"\0{name}")
            if not _same_user(connection):
                raise PeerError("the peer belongs to another user")
            _, fds, _, _ = socket.recv_fds(connection, 1, 1)
        except (OSError, ValueError) as error:
            raise PeerError(f"the peer does not share this host's memory: {error}") from error
    if not fds:
        raise PeerError("the peer did not share its memory: it runs as another user, or is closing")
    return fds[0]


def _map(fd: int, nbytes: int) -> ShmPeer:
    try:
        if not fcntl.fcntl(fd, fcntl.F_GET_SEALS) & FIXED_SIZE:
            # Were it cut short under a read, the kernel would end this process.
            raise PeerError("the peer shares memory that can shrink")
        if nbytes <= 0 or os.fstat(fd).st_size != nbytes:
            raise PeerError(f"the peer shares {os.fstat(fd).st_size} bytes and announced {nbytes}")
        return ShmPeer(mmap.mmap(fd, nbytes, prot=mmap.PROT_READ))
    except (OSError, ValueError) as error:
        raise PeerError(f"the peer's memory cannot be mapped: {error}") from error


def _same_user(connection: socket.socket) -> bool:
    credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, PEER_CREDENTIALS.size)
    _, uid, _ = PEER_CREDENTIALS.unpack(credentials)
    return bool(uid == os.getuid())
