# SPDX-License-Identifier: Apache-2.0
"""Transport over NIXL (UCX): one agent, one registered region, one-sided READs.

NIXL's progress thread spins: it takes a core per process whether bytes move or not. The agent makes progress by
itself instead, while a read is on its way.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, ClassVar, TypeVar
from uuid import uuid4

import msgspec

from vllm_epd.errors import PeerError, TransferError
from vllm_epd.transfer.base import Peer, Read, Transport, check_bounds, pair_spans
from vllm_epd.transfer.pool import Span
from vllm_epd.transfer.region import Region

T = TypeVar("T")


class _Place(msgspec.Struct, frozen=True):
    """Where a region lies, and what NIXL calls that kind of memory."""

    base: int
    nbytes: int
    device: int
    memory: str


class _Description(msgspec.Struct, frozen=True):
    agent: bytes
    place: _Place


class NixlPeer(Peer):
    """A remote agent whose region can be read."""

    def __init__(self, name: str, place: _Place, forget: Callable[[], None]) -> None:
        """`forget` is called once, when the peer is closed."""
        self._name = name
        self._forget: Callable[[], None] | None = forget
        self.place = place

    @property
    def name(self) -> str:
        """By which the local agent knows it."""
        if self._forget is None:
            raise TransferError("the peer is closed")
        return self._name

    def close(self) -> None:
        if self._forget is not None:
            forget, self._forget = self._forget, None
            forget()


class NixlRead(Read):
    """One READ, started; NIXL makes progress when it is polled."""

    def __init__(self, agent: Any, handle: Any, state: str) -> None:
        """A READ with its `handle`, last seen in `state`."""
        self._agent = agent
        self._handle = handle
        self._state = state

    def poll(self) -> bool:
        if self._state == "PROC":
            self._state = _guard("poll a read", self._agent.check_xfer_state, self._handle)
        if self._state not in ("DONE", "PROC"):
            raise TransferError(f"NIXL READ ended in state {self._state!r}")
        return self._state == "DONE"

    def close(self) -> None:
        if self._handle is not None:
            handle, self._handle = self._handle, None
            _guard("release a read", self._agent.release_xfer_handle, handle)


class NixlTransport(Transport):
    """One NIXL agent with one region.

    Raises:
        TransferError: nixl is missing, or its backend does not start.
    """

    name: ClassVar[str] = "nixl"

    def __init__(self, backend: str = "UCX") -> None:
        try:
            from nixl._api import nixl_agent, nixl_agent_config
        except ImportError as error:
            raise TransferError("nixl is not installed; install vllm-epd with its cpu or gpu extra") from error
        config = _guard("configure NIXL", partial(nixl_agent_config, enable_prog_thread=False, backends=[backend]))
        self._agent: Any = _guard(f"start NIXL with {backend}", nixl_agent, f"epd-{uuid4().hex}", config)
        self._backend = backend
        self._registered: Any = None
        self._own: _Place | None = None
        self._connections: Counter[str] = Counter()
        self._closed = False

    def register(self, region: Region) -> None:
        if self._own is not None or self._closed:
            raise TransferError("a NixlTransport registers one region, once")
        memory = "VRAM" if region.on_device else "DRAM"
        self._registered = _guard(
            f"register {region.nbytes} bytes of {memory} memory with {self._backend}",
            partial(self._agent.register_memory, region.tensor, backends=[self._backend]),
        )
        self._own = _Place(region.tensor.data_ptr(), region.nbytes, region.device_index, memory)

    def describe(self) -> bytes:
        place = self._own_place()
        agent = _guard("describe the agent", self._agent.get_agent_metadata)
        return msgspec.msgpack.encode(_Description(agent, place))

    def connect(self, description: bytes) -> Peer:
        self._own_place()
        try:
            remote = msgspec.msgpack.decode(description, type=_Description)
        except msgspec.DecodeError as error:
            raise PeerError(f"the peer's NIXL description does not decode: {error}") from error
        try:
            added = _guard("connect to a peer", self._agent.add_remote_agent, remote.agent)
        except TransferError as error:
            raise PeerError(str(error)) from error
        name = added.decode() if isinstance(added, bytes) else str(added)
        self._connections[name] += 1
        return NixlPeer(name, remote.place, lambda: self._forget(name))

    def read(self, peer: Peer, remote: Sequence[Span], local: Sequence[Span]) -> Read:
        if not isinstance(peer, NixlPeer):
            raise TransferError(f"a NixlTransport reads from its own peers, not from {type(peer).__name__}")
        own, there = self._own_place(), peer.place
        check_bounds(remote, there.nbytes)
        check_bounds(local, own.nbytes)
        pairs = pair_spans(remote, local)
        return _guard("start a read", self._start, own, peer, pairs)

    def progress(self) -> None:
        _guard("make progress", self._agent.get_new_notifs)

    def close(self) -> None:
        self._closed = True
        if self._registered is not None:
            registered, self._registered = self._registered, None
            _guard("deregister a region", self._agent.deregister_memory, registered)
            self._own = None

    def _start(self, own: _Place, peer: NixlPeer, pairs: Sequence[tuple[Span, Span]]) -> NixlRead:
        agent, there = self._agent, peer.place
        local = [(own.base + here.offset, here.length, own.device) for _, here in pairs]
        remote = [(there.base + far.offset, far.length, there.device) for far, _ in pairs]
        handle = agent.initialize_xfer(
            "READ",
            agent.get_xfer_descs(local, mem_type=own.memory),
            agent.get_xfer_descs(remote, mem_type=there.memory),
            peer.name,
        )
        try:
            return NixlRead(agent, handle, agent.transfer(handle))
        except Exception:
            agent.release_xfer_handle(handle)
            raise

    def _forget(self, name: str) -> None:
        """NIXL knows an agent once, however often it was connected to."""
        self._connections[name] -= 1
        if not self._connections[name]:
            del self._connections[name]
            _guard("forget a peer", self._agent.remove_remote_agent, name)

    def _own_place(self) -> _Place:
        if self._own is None:
            raise TransferError("register a region first")
        return self._own


def _guard(what: str, call: Callable[..., T], *args: Any) -> T:
    """Run a NIXL call; its errors, which share no base class of their own, become TransferErrors."""
    try:
        return call(*args)
    except Exception as error:  # noqa: BLE001
        raise TransferError(f"NIXL could not {what}: {type(error).__name__}: {error}") from error
