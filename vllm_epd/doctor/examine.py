# SPDX-License-Identifier: Apache-2.0
"""The examination of one tier, and of all tiers of a machine."""

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import median

import torch

from vllm_epd.doctor.consumer import Consumer
from vllm_epd.doctor.producer import Offer, free_address, producer_process
from vllm_epd.errors import TransferError
from vllm_epd.transfer.tiers import AUTO, DEVICE_TIERS, HOST_TIERS, TransferMemory

SMALL, LARGE = 64 << 10, 16 << 20
SIZES = (SMALL, LARGE)
FETCHES = {SMALL: 150, LARGE: 15}
WARM_UP = 6
"""Fetches before those that count: the handshake, and every page once."""

TIMEOUT_S = 10.0


@dataclass(frozen=True, slots=True)
class Wanted:
    """What the user asks for: `auto` or one transport, and NIXL's backend."""

    transport: str = AUTO
    backend: str = "UCX"


@dataclass(frozen=True, slots=True)
class Finding:
    """What came of one tier, or of the choice that an instance makes by itself.

    Attributes:
        tier: name of the transport, or `auto`.
        device: where the model would be; `cpu` for pools in host memory.
        problem: why it does not work; empty where it does.
        latency_s: median of fetches of `SMALL` bytes; 0 where it does not work.
        bytes_per_s: of fetches of `LARGE` bytes, by their median; 0 where it does not work.
    """

    tier: str
    device: str
    problem: str = ""
    latency_s: float = 0.0
    bytes_per_s: float = 0.0

    @property
    def works(self) -> bool:
        """Whether all bytes arrived as they were offered."""
        return not self.problem


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """All tiers in the order in which an instance prefers them, and the choice that it makes by itself."""

    tiers: tuple[Finding, ...]
    choice: Finding

    @property
    def chosen(self) -> Finding | None:
        """The tier that is used by default; None where none works."""
        return next((tier for tier in self.tiers if tier.works), None) if self.choice.works else None


def examine_machine(wanted: Wanted) -> Diagnosis:
    """Examine transfers between two instances of this machine."""
    tiers = [finding for device, names in placements(wanted) for finding in _examine_pair(device, names, wanted)]
    (choice,) = _examine_pair(default_device(), (wanted.transport,), wanted)
    return Diagnosis(tuple(tiers), choice)


def examine_peer(address: str, wanted: Wanted) -> Diagnosis:
    """Examine transfers from the producer at the ZeroMQ `address` to this machine."""
    tiers = [examine(address, device, tier, wanted) for device, names in placements(wanted) for tier in names]
    return Diagnosis(tuple(tiers), examine(address, default_device(), wanted.transport, wanted))


def placements(wanted: Wanted) -> list[tuple[str, tuple[str, ...]]]:
    """The devices of this machine on which a model may be, each with the tiers to examine; the preferred one first."""
    every: list[tuple[str, tuple[str, ...]]] = [("cpu", HOST_TIERS)]
    if default_device() != "cpu":
        every.insert(0, (default_device(), DEVICE_TIERS))
    if wanted.transport == AUTO:
        return every
    only = (wanted.transport,)
    return [(device, only) for device, names in every if wanted.transport in names] or [("cpu", only)]


def default_device() -> str:
    """Where a model would be on this machine."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def examine(address: str, device: str, tier: str, wanted: Wanted) -> Finding:
    """Fetch from the producer at `address` over one tier, or with `auto` over the best."""
    memory = TransferMemory(LARGE, device, tier, wanted.backend)
    try:
        seconds = {nbytes: _median_fetch(address, nbytes, memory) for nbytes in SIZES}
    except TransferError as error:
        return Finding(tier, device, str(error))
    return Finding(tier, device, latency_s=seconds[SMALL], bytes_per_s=LARGE / seconds[LARGE])


def _examine_pair(device: str, tiers: Sequence[str], wanted: Wanted) -> list[Finding]:
    address = free_address()
    offer = Offer(address, SIZES, device, wanted.transport, wanted.backend)
    try:
        with producer_process(offer):
            return [examine(address, device, tier, wanted) for tier in tiers]
    except TransferError as error:
        return [Finding(tier, device, str(error)) for tier in tiers]


def _median_fetch(address: str, nbytes: int, memory: TransferMemory) -> float:
    with _consumer(address, nbytes, memory) as consumer:
        for _ in range(WARM_UP):
            consumer.fetch()
        return median(consumer.fetch() for _ in range(FETCHES[nbytes]))


@contextlib.contextmanager
def _consumer(address: str, nbytes: int, memory: TransferMemory) -> Iterator[Consumer]:
    consumer = Consumer(address, nbytes, memory, timeout_s=TIMEOUT_S)
    try:
        yield consumer
    finally:
        consumer.close()
