# SPDX-License-Identifier: Apache-2.0
"""Ours: the read of a transport alone, and the whole fetch between two agents."""

import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from tests.bench.transfer.cases import SIZES
from tests.bench.transfer.variants.base import Reader, Source
from tests.bench.transfer.variants.places import Rounds, source_region, target_region
from vllm_epd.doctor.consumer import Consumer
from vllm_epd.doctor.producer import Offer, free_address, start_producer
from vllm_epd.transfer.base import Transport
from vllm_epd.transfer.pool import Span
from vllm_epd.transfer.tiers import MAKERS, TransferMemory

NEEDS = {"shm": (), "nixl": ("nixl",), "cuda_ipc": ("cupy",)}
FETCH_LIMIT_S = 30.0


@dataclass(slots=True)
class _TransportSource:
    transport: Transport
    description: bytes

    def progress(self) -> None:
        self.transport.progress()


@dataclass(frozen=True, slots=True)
class _AgentSource:
    """An agent looks after its transports by itself."""

    description: bytes

    def progress(self) -> None:
        pass


@dataclass(frozen=True, slots=True)
class _Tier:
    tier: str
    device: str = "cpu"

    def missing(self) -> str:
        if self.device != "cpu" and not torch.cuda.is_available():
            return "there is no CUDA device"
        lacking = [module for module in NEEDS[self.tier] if importlib.util.find_spec(module) is None]
        return f"{lacking[0]} is not installed" if lacking else ""

    @property
    def _label(self) -> str:
        return self.tier if self.device == "cpu" or self.tier == "cuda_ipc" else f"{self.tier} {self.device}"


class TierRead(_Tier):
    """`Transport.read` until its last byte has landed, polled without a pause."""

    @property
    def name(self) -> str:
        return f"{self._label} read"

    @contextmanager
    def open_source(self) -> Iterator[Source]:
        transport, region = self._transport(), source_region(self.device)
        transport.register(region)
        yield _TransportSource(transport, transport.describe())
        transport.close()

    @contextmanager
    def open_reader(self, description: bytes) -> Iterator[Reader]:
        transport, region = self._transport(), target_region(self.device)
        transport.register(region)
        peer = transport.connect(description)

        def move(there: int, here: int, nbytes: int) -> None:
            read = transport.read(peer, [Span(there, nbytes)], [Span(here, nbytes)])
            while not read.poll():
                pass
            read.close()

        yield Rounds(region.tensor, move)
        peer.close()
        transport.close()

    def _transport(self) -> Transport:
        return MAKERS[self.tier](TransferMemory(0))


class TierFetch(_Tier):
    """From the command of a scheduler to the report that the embedding is here, as between two instances."""

    @property
    def name(self) -> str:
        return f"{self._label} fetch"

    @contextmanager
    def open_source(self) -> Iterator[Source]:
        address = free_address()
        agent = start_producer(Offer(address, SIZES, self.device, self.tier))
        yield _AgentSource(address.encode())
        agent.close()

    @contextmanager
    def open_reader(self, description: bytes) -> Iterator[Reader]:
        memory = TransferMemory(0, self.device, self.tier)
        consumers = {
            nbytes: Consumer(description.decode(), nbytes, memory, timeout_s=FETCH_LIMIT_S) for nbytes in SIZES
        }
        yield _Fetches(consumers)
        for consumer in consumers.values():
            consumer.close()


@dataclass(frozen=True, slots=True)
class _Fetches:
    consumers: dict[int, Consumer]

    def read(self, nbytes: int, *, check: bool) -> float:
        return self.consumers[nbytes].fetch(check=check)
