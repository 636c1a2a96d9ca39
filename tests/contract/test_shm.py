# SPDX-License-Identifier: Apache-2.0
"""What shared memory promises beyond that: who gets it, and what they can do with it."""

import ctypes
import errno
import fcntl
import mmap
import os
import threading
import time

import msgspec
import pytest
import torch

from tests.contract.kinds import NBYTES, Kind, bytes_of, owned_bytes
from tests.contract.sides import Child, LocalOwner, RemoteOwner, finish
from vllm_epd.errors import PeerError, TransferError
from vllm_epd.transfer import shm
from vllm_epd.transfer.pool import Span
from vllm_epd.transfer.region import SEAL_FUTURE_WRITE, Region, host_region

SHM = Kind("shm")
NOBODY = 65534
CLONE_NEWNET = 0x40000000
WHOLE = [Span(0, NBYTES)]


@pytest.fixture
def owner():
    owner = RemoteOwner(SHM)
    yield owner
    owner.end()


@pytest.fixture
def descriptor(owner):
    """What the owner hands over."""
    fd = shm._take_over(msgspec.msgpack.decode(owner.description)["socket"])
    yield fd
    os.close(fd)


@pytest.fixture
def reader():
    transport, region = SHM.make(), SHM.region()
    transport.register(region)
    yield transport, region
    transport.close()
    region.close()


def test_the_descriptor_is_sealed(descriptor):
    seals = fcntl.fcntl(descriptor, fcntl.F_GET_SEALS)
    assert seals == fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL | SEAL_FUTURE_WRITE


def test_a_reader_cannot_change_what_it_maps(descriptor, owner):
    with pytest.raises(PermissionError):
        mmap.mmap(descriptor, NBYTES, prot=mmap.PROT_READ | mmap.PROT_WRITE)
    with pytest.raises(PermissionError):
        os.pwrite(descriptor, b"x", 0)
    for size in (0, 2 * NBYTES):
        with pytest.raises(PermissionError):
            os.ftruncate(descriptor, size)
    again = os.open(f"/proc/self/fd/{descriptor}", os.O_RDWR)
    with pytest.raises(PermissionError):
        mmap.mmap(again, NBYTES)
    os.close(again)
    with mmap.mmap(descriptor, NBYTES, prot=mmap.PROT_READ) as mapped:
        assert mapped[:] == owned_bytes().tobytes()


def test_a_readers_mapping_cannot_be_made_writable(descriptor):
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mmap.restype = ctypes.c_void_p
    libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
    libc.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    address = libc.mmap(None, NBYTES, mmap.PROT_READ, mmap.MAP_SHARED, descriptor, 0)
    assert libc.mprotect(address, NBYTES, mmap.PROT_READ | mmap.PROT_WRITE) == -1
    assert ctypes.get_errno() == errno.EACCES


def test_what_the_owner_writes_later_is_seen(reader):
    transport, region = reader
    owner = LocalOwner(SHM)
    peer = transport.connect(owner.description)
    owner._region.tensor.fill_(9)
    finish(transport.read(peer, WHOLE, WHOLE))
    assert (region.tensor == 9).all()
    peer.close()
    owner.end()


def test_a_region_without_a_descriptor_cannot_be_shared():
    transport = SHM.make()
    with pytest.raises(TransferError, match="that other processes can map"):
        transport.register(Region(torch.zeros(NBYTES, dtype=torch.uint8)))


def test_memory_that_can_shrink_is_not_mapped(reader):
    region = host_region(NBYTES)
    loose = os.memfd_create("loose", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.ftruncate(loose, NBYTES)
    owner = SHM.make()
    owner.register(Region(region.tensor, loose, lambda: os.close(loose)))
    with pytest.raises(PeerError, match="can shrink"):
        reader[0].connect(owner.describe())
    owner.close()
    os.close(loose)


@pytest.mark.parametrize("announced", [NBYTES - 1, NBYTES + 1, 0, -1])
def test_another_size_than_announced_is_refused(reader, owner, announced):
    description = msgspec.msgpack.decode(owner.description) | {"nbytes": announced}
    with pytest.raises(PeerError, match="announced"):
        reader[0].connect(msgspec.msgpack.encode(description))


@pytest.mark.parametrize("name", ["", "epd-nobody", "x" * 500, "nul\0inside"])
def test_nobody_there_is_a_peer_error(reader, name):
    with pytest.raises(PeerError):
        reader[0].connect(msgspec.msgpack.encode({"socket": name, "nbytes": NBYTES}))


def _visit(parent, description, change):
    """Connect as somebody else; tell what came of it."""
    transport, region = SHM.make(), SHM.region()
    transport.register(region)
    try:
        change()
    except OSError as error:
        parent.send(f"cannot: {error}")
        return
    try:
        transport.connect(description)
    except PeerError as error:
        parent.send(f"PeerError: {error}")
    else:
        parent.send("connected")


def _ask_without_looking(parent, description):
    """As another user, take whatever the owner gives, without a look at who it is."""
    os.setuid(NOBODY)
    shm._same_user = lambda connection: True
    try:
        os.close(shm._take_over(msgspec.msgpack.decode(description)["socket"]))
    except PeerError as error:
        parent.send(f"PeerError: {error}")
    else:
        parent.send("given")


def _become_nobody():
    os.setuid(NOBODY)


def _leave_the_network():
    if ctypes.CDLL(None, use_errno=True).unshare(CLONE_NEWNET):
        raise OSError(ctypes.get_errno(), "unshare")


needs_root = pytest.mark.skipif(os.getuid() != 0, reason="becoming another user needs root")


@needs_root
def test_a_reader_refuses_the_memory_of_another_user(owner):
    visitor = Child(_visit, owner.description, _become_nobody)
    assert visitor.ask() == "PeerError: the peer belongs to another user"
    assert visitor.end() == 0


@needs_root
def test_an_owner_gives_nothing_to_another_user(owner, reader):
    visitor = Child(_ask_without_looking, owner.description)
    assert visitor.ask().startswith("PeerError: the peer did not share its memory")
    assert visitor.end() == 0
    reader[0].connect(owner.description).close()


def test_another_network_namespace_is_another_host(owner):
    visitor = Child(_visit, owner.description, _leave_the_network)
    outcome = visitor.ask()
    visitor.end()
    if outcome.startswith("cannot"):
        pytest.skip(f"a network namespace of its own needs CAP_SYS_ADMIN: {outcome}")
    assert outcome.startswith("PeerError: the peer does not share this host's memory")


def test_a_connected_reader_keeps_the_bytes_of_an_owner_that_is_killed(owner, reader):
    transport, region = reader
    peer = transport.connect(owner.description)
    owner.kill()
    finish(transport.read(peer, WHOLE, WHOLE))
    assert (bytes_of(region) == owned_bytes()).all()
    peer.close()


def test_an_owner_that_runs_out_of_descriptors_goes_on_to_the_next_visitor(monkeypatch):
    accepted = threading.Event()

    class Listener:
        def accept(self):
            if not accepted.is_set():
                accepted.set()
                raise OSError(errno.EMFILE, "too many open files")
            raise OSError(errno.EINVAL, "closed")

    fd = os.dup(0)
    monkeypatch.setattr(shm, "RETRY_S", 0.0)
    shm._hand_over(Listener(), fd)
    assert accepted.is_set()
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(fd)


def test_closing_leaves_no_thread_and_no_descriptor_behind():
    def state():
        return sum(thread.name == "epd-shm" for thread in threading.enumerate()), len(os.listdir("/proc/self/fd"))

    before = state()
    owner = LocalOwner(SHM)
    assert state()[0] == before[0] + 1
    owner.end()
    deadline = time.monotonic() + 5
    while state() != before and time.monotonic() < deadline:
        time.sleep(0.01)
    assert state() == before
