# SPDX-License-Identifier: Apache-2.0
"""Transport over NIXL (UCX): one agent, one registered region, one-sided READs.

NIXL's progress thread spins: it takes a core per process whether bytes move or not. The agent makes progress by
itself instead, while a read is on its way.
"""

from collections.abc import Callable, Sequence
from typing import Any, ClassVar, TypeVar
from uuid import uuid4

import msgspec
import torch

from vllm_epd.errors import PeerError, TransferError
from vllm_epd.transfer.base import Peer, Read, Transport, pair_spans
from vllm_epd.transfer.pool import Span

T = TypeVar("T")


class _Description(msgspec.Struct, frozen=True):
    agent: bytes
    base: int
    nbytes: int
    device: int
    memory: str


class NixlPeer(Peer):
    """A remote agent whose region can be read."""

    def __init__(self, agent: Any, name: str, description: _Description) -> None:
        self._agent = agent
        self.name = name
        self.description = description
        self._open = True

    def close(self) -> None:
        if self._open:
            self._open = False
            _guard("forget a peer", lambda: self._agent.remove_remote_agent(self.name))


class NixlRead(Read):
    """One READ; NIXL makes progress when it is polled."""

    def __init__(self, agent: Any, handle: Any) -> None:
        self._agent = agent
        self._handle = handle

    def poll(self) -> bool:
        state = _guard("poll a read", lambda: self._agent.check_xfer_state(self._handle))
        if state not in ("DONE", "PROC"):
            raise TransferError(f"NIXL READ ended in state {state!r}")
        return bool(state == "DONE")

    def close(self) -> None:
        if self._handle is not None:
            handle, self._handle = self._handle, None
            _guard("release a read", lambda: self._agent.release_xfer_handle(handle))


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
        config = _guard("configure NIXL", lambda: nixl_agent_config(enable_prog_thread=False, backends=[backend]))
        self._agent: Any = _guard(f"start NIXL with {backend}", lambda: nixl_agent(f"epd-{uuid4().hex}", config))
        self._backend = backend
        self._region: torch.Tensor | None = None
        self._registered: Any = None

    def register(self, region: torch.Tensor) -> None:
        if self._region is not None:
            raise TransferError("a NixlTransport registers one region, once")
        if region.dtype != torch.uint8 or region.dim() != 1 or not region.is_contiguous():
            raise TransferError("a region is a contiguous uint8 tensor of one dimension")
        self._registered = _guard(
            "register a region", lambda: self._agent.register_memory(region, backends=[self._backend])
        )
        self._region = region

    def describe(self) -> bytes:
        region = self._own_region()
        return msgspec.msgpack.encode(
            _Description(
                agent=_guard("describe the agent", self._agent.get_agent_metadata),
                base=region.data_ptr(),
                nbytes=region.numel(),
                device=_device_id(region),
                memory=_memory(region),
            )
        )

    def connect(self, description: bytes) -> Peer:
        try:
            remote = msgspec.msgpack.decode(description, type=_Description)
        except msgspec.DecodeError as error:
            raise PeerError(f"the peer's NIXL description does not decode: {error}") from error
        name = _guard("connect to a peer", lambda: self._agent.add_remote_agent(remote.agent))
        return NixlPeer(self._agent, name.decode() if isinstance(name, bytes) else str(name), remote)

    def read(self, peer: Peer, remote: Sequence[Span], local: Sequence[Span]) -> Read:
        if not isinstance(peer, NixlPeer):
            raise TransferError(f"a NixlTransport reads from its own peers, not from {type(peer).__name__}")
        own, there = self._own_region(), peer.description
        _check_bounds(remote, there.nbytes)
        _check_bounds(local, own.numel())
        pairs = pair_spans(remote, local)
        handle = _guard(
            "prepare a read",
            lambda: self._agent.initialize_xfer(
                "READ",
                self._descriptors(own.data_ptr(), _device_id(own), _memory(own), [pair[1] for pair in pairs]),
                self._descriptors(there.base, there.device, there.memory, [pair[0] for pair in pairs]),
                peer.name,
            ),
        )
        read = NixlRead(self._agent, handle)
        if _guard("start a read", lambda: self._agent.transfer(handle)) not in ("DONE", "PROC"):
            read.close()
            raise TransferError(f"NIXL could not start a READ of {len(pairs)} descriptors from {peer.name}")
        return read

    def progress(self) -> None:
        _guard("make progress", self._agent.get_new_notifs)

    def close(self) -> None:
        if self._registered is not None:
            registered, self._registered = self._registered, None
            _guard("deregister a region", lambda: self._agent.deregister_memory(registered))
            self._region = None

    def _own_region(self) -> torch.Tensor:
        if self._region is None:
            raise TransferError("register a region first")
        return self._region

    def _descriptors(self, base: int, device: int, memory: str, spans: Sequence[Span]) -> Any:
        rows = [(base + span.offset, span.length, device) for span in spans]
        return self._agent.get_xfer_descs(rows, mem_type=memory)


def _check_bounds(spans: Sequence[Span], nbytes: int) -> None:
    for span in spans:
        if span.offset < 0 or span.length <= 0 or span.offset + span.length > nbytes:
            raise TransferError(f"{span} lies outside a region of {nbytes} bytes")


def _device_id(region: torch.Tensor) -> int:
    return region.device.index or 0 if region.is_cuda else 0


def _memory(region: torch.Tensor) -> str:
    return "VRAM" if region.is_cuda else "DRAM"


def _guard(what: str, call: Callable[[], T]) -> T:
    """Run a NIXL call; its errors, which share no base class of their own, become TransferErrors."""
    try:
        return call()
    except Exception as error:  # noqa: BLE001
        raise TransferError(f"NIXL could not {what}: {type(error).__name__}: {error}") from error
