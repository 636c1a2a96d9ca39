# SPDX-License-Identifier: Apache-2.0
"""Which transports an instance has, and which of them two peers use: the best that both have and that works.

Over a region in host memory these are `shm`, on one host, then `nixl`; in device memory `cuda_ipc`, then `nixl`.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch

from vllm_epd.errors import PeerError, TransferError
from vllm_epd.transfer import wire
from vllm_epd.transfer.base import Peer, Read, Transport
from vllm_epd.transfer.pool import Span
from vllm_epd.transfer.region import Region, host_region

logger = logging.getLogger(__name__)

AUTO = "auto"
HOST_TIERS = ("shm", "nixl")
DEVICE_TIERS = ("cuda_ipc", "nixl")


@dataclass(frozen=True, slots=True)
class TransferMemory:
    """How the region of an agent is made and moved.

    Attributes:
        nbytes: size of the region.
        device: of the model; CUDA memory is tried first there.
        transport: `auto`, or the only tier to use.
        backend: NIXL's, such as `UCX`.
    """

    nbytes: int
    device: str = "cpu"
    transport: str = AUTO
    backend: str = "UCX"


@dataclass(frozen=True, slots=True)
class Link:
    """A connected peer and the transport that reaches it."""

    transport: Transport
    peer: Peer

    def read(self, remote: Sequence[Span], local: Sequence[Span]) -> Read:
        """Start to read from the peer; see `Transport.read`."""
        return self.transport.read(self.peer, remote, local)

    def close(self) -> None:
        """Forget the peer."""
        self.peer.close()


class Tiers:
    """The transports that started over one region, best first. Used from one thread."""

    def __init__(self, region: Region, transports: Sequence[Transport]) -> None:
        """Own `region` and `transports`, all registered with it."""
        self.region = region
        self._transports = {transport.name: transport for transport in transports}

    @property
    def names(self) -> list[str]:
        """Best first."""
        return list(self._transports)

    def offers(self, wanted: Sequence[str]) -> list[wire.Tier]:
        """What a peer that can use the tiers `wanted` needs to connect.

        Raises:
            PeerError: it can use none of these.
        """
        offers = [wire.Tier(name, each.describe()) for name, each in self._transports.items() if name in wanted]
        if not offers:
            raise PeerError(f"no transport in common: {list(wanted)} there, {self.names} here")
        return offers

    def connect(self, offers: Sequence[wire.Tier]) -> Link:
        """Connect over the best tier that works.

        Raises:
            PeerError: none does; the message says why for each.
        """
        offered = {offer.name: offer.description for offer in offers}
        reasons = []
        for name, transport in self._transports.items():
            if name not in offered:
                continue
            try:
                return Link(transport, transport.connect(offered[name]))
            except TransferError as error:
                reasons.append(f"{name}: {error}")
        raise PeerError(f"no transport reaches the peer ({'; '.join(reasons) or f'it offers {sorted(offered)}'})")

    def progress(self, name: str) -> None:
        """Serve peers that read over the tier `name`."""
        self._transports[name].progress()

    def close(self) -> None:
        """Stop all transports and free the region; a second call does nothing."""
        for transport in self._transports.values():
            try:
                transport.close()
            except TransferError as error:
                logger.warning("%s did not stop cleanly: %s", transport.name, error)
        self._transports = {}
        self.region.close()


def open_tiers(memory: TransferMemory) -> Tiers:
    """Allocate the region and start what can move it, in device memory if the model is there.

    A tier that does not start is passed over with a warning; one that was asked for by name is not.

    Raises:
        TransferError: no tier starts; the message says why for each.
    """
    reasons: list[str] = []
    for allocate, names in _placements(memory):
        tiers = _start(allocate, names, memory, reasons)
        if tiers is not None:
            return tiers
    raise TransferError(f"no transport starts ({'; '.join(reasons)})")


def _placements(memory: TransferMemory) -> list[tuple[Callable[[], Region], tuple[str, ...]]]:
    cuda = memory.device.startswith("cuda")
    placements: list[tuple[Callable[[], Region], tuple[str, ...]]] = []
    if cuda:
        placements.append((lambda: _device_region(memory.nbytes, torch.device(memory.device)), DEVICE_TIERS))
    placements.append((lambda: host_region(memory.nbytes, page_locked=cuda), HOST_TIERS))
    if memory.transport == AUTO:
        return placements
    known = {*HOST_TIERS, *DEVICE_TIERS}
    if memory.transport not in known:
        raise TransferError(f"unknown transport {memory.transport!r}; known: {', '.join(sorted(known))}")
    chosen: list[tuple[Callable[[], Region], tuple[str, ...]]] = [
        (allocate, (memory.transport,)) for allocate, names in placements if memory.transport in names
    ]
    if not chosen:
        raise TransferError(f"{memory.transport} moves device memory, and the model is on {memory.device}")
    return chosen


def _start(
    allocate: Callable[[], Region], names: Sequence[str], memory: TransferMemory, reasons: list[str]
) -> Tiers | None:
    try:
        region = allocate()
    except TransferError as error:
        reasons.append(str(error))
        logger.warning("no pool in %s memory: %s", "device" if names == DEVICE_TIERS else "host", error)
        return None
    started = []
    for name in names:
        try:
            transport = MAKERS[name](memory)
            transport.register(region)
        except TransferError as error:
            reasons.append(f"{name}: {error}")
            logger.warning("transport %s is not used: %s", name, error)
        else:
            started.append(transport)
    if started:
        return Tiers(region, started)
    region.close()
    return None


def _make_shm(memory: TransferMemory) -> Transport:
    from vllm_epd.transfer.shm import ShmTransport

    return ShmTransport()


def _make_cuda_ipc(memory: TransferMemory) -> Transport:
    from vllm_epd.transfer.cuda_ipc import CudaIpcTransport

    return CudaIpcTransport()


def _make_nixl(memory: TransferMemory) -> Transport:
    from vllm_epd.transfer.nixl import NixlTransport

    return NixlTransport(memory.backend)


def _device_region(nbytes: int, device: torch.device) -> Region:
    from vllm_epd.transfer.cuda_ipc import device_region

    return device_region(nbytes, device)


MAKERS: Mapping[str, Callable[[TransferMemory], Transport]] = {
    "shm": _make_shm,
    "cuda_ipc": _make_cuda_ipc,
    "nixl": _make_nixl,
}
