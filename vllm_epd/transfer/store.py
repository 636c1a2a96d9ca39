# SPDX-License-Identifier: Apache-2.0
"""Embeddings in a registered region: the producer's side of a hand-over, shared by two threads."""

import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from uuid import uuid4

import torch

from vllm_epd.errors import EmbeddingLostError, PoolError
from vllm_epd.transfer.pool import PagedPool, Span
from vllm_epd.transfer.wire import PoolState


@dataclass(frozen=True, slots=True)
class StoredItem:
    """What is needed to read an item: where it lies, its shape, and an event after which its bytes are there."""

    spans: tuple[Span, ...]
    shape: tuple[int, ...]
    dtype: torch.dtype
    written: torch.Event | None

    @property
    def ready(self) -> bool:
        """Whether the device has written the bytes."""
        return self.written is None or bool(self.written.query())


class EmbeddingStore:
    """A region, its pages and what lies in them.

    `put`, `lease` and `hold` are called by the model's thread, the rest by the agent's. Every method takes the lock
    for microseconds only, but `put` and `hold`, which wait without it.
    """

    def __init__(self, capacity_bytes: int, page_bytes: int, *, pinned: bool) -> None:
        """Allocate the region: host memory, page-locked when `pinned` (for copies from a device)."""
        self._pool = PagedPool(capacity_bytes, page_bytes)
        self.region = torch.empty(self._pool.capacity_bytes, dtype=torch.uint8, pin_memory=pinned)
        self._items: dict[str, StoredItem] = {}
        self._room = threading.Condition()

    def put(self, key: str, tensor: torch.Tensor, lease: str, lease_s: float, wait_s: float) -> None:
        """Copy `tensor` into the pool under a lease; a key that is held already only gets the lease.

        Waits up to `wait_s` for room: a producer whose consumers do not read stops producing.

        Raises:
            PoolError: larger than the pool, or no room in time.
        """
        flat = tensor.detach().contiguous().view(-1).view(torch.uint8)
        if not self._reserve(key, flat.numel(), lease, lease_s, wait_s):
            return
        spans = self._pool.spans(key)
        _copy_in(self.region, spans, flat)
        written = None
        if flat.is_cuda:
            written = torch.cuda.Event()
            written.record()
        with self._room:
            self._items[key] = StoredItem(spans, tuple(tensor.shape), tensor.dtype, written)

    def lease(self, key: str, lease: str, lease_s: float) -> bool:
        """Lease `key` if it is held; whether it is."""
        with self._room:
            if key not in self._items or key not in self._pool:
                return False
            self._pool.pin(key, lease, time.monotonic() + lease_s)
            return True

    def hold(self, nbytes: int, wait_s: float) -> tuple[str, tuple[Span, ...]]:
        """Reserve an anonymous, pinned piece of the region, until `forget`.

        Raises:
            PoolError: larger than the region, or no room in time.
        """
        key = f"hold-{uuid4().hex}"
        if not self._reserve(key, nbytes, key, float("inf"), wait_s):
            raise PoolError(f"{key!r} collides with a held item")
        return key, self._pool.spans(key)

    def grant(self, key: str, grant: str, grant_s: float) -> StoredItem:
        """Pin `key` for a reader.

        Raises:
            EmbeddingLostError: `key` is not held.
        """
        with self._room:
            item = self._items.get(key) if key in self._pool else None
            if item is None:
                raise EmbeddingLostError(f"{key!r} is not held (never offered, or evicted after its lease)")
            self._pool.pin(key, grant, time.monotonic() + grant_s)
            return item

    def release(self, pin: str) -> bool:
        """End a lease or a grant; False when it is unknown or ended before."""
        with self._room:
            known = self._pool.unpin(pin)
            self._room.notify_all()
            return known

    def forget(self, key: str) -> None:
        """Drop `key` with its pins."""
        with self._room:
            self._pool.remove(key)
            self._items.pop(key, None)
            self._room.notify_all()

    def state(self) -> PoolState:
        """How full the region is, counting no pin that has run out."""
        with self._room:
            self._pool.expire(time.monotonic())
            return PoolState(
                capacity_bytes=self._pool.capacity_bytes,
                free_bytes=self._pool.free_bytes,
                items=len(self._pool),
                pinned=self._pool.pinned,
            )

    def _reserve(self, key: str, nbytes: int, pin: str, pin_s: float, wait_s: float) -> bool:
        """Reserve and pin; False when `key` was there, which then is pinned too."""
        give_up = time.monotonic() + wait_s
        with self._room:
            while key not in self._pool:
                now = time.monotonic()
                if self._pool.reserve(key, nbytes, now) is not None:
                    self._items = {k: v for k, v in self._items.items() if k in self._pool}
                    self._pool.pin(key, pin, now + pin_s)
                    return True
                if now >= give_up:
                    raise PoolError(f"no room for {nbytes} bytes within {wait_s:.0f} s: consumers do not read")
                self._room.wait(min(1.0, give_up - now))
            self._pool.pin(key, pin, time.monotonic() + pin_s)
            return False


def _copy_in(region: torch.Tensor, spans: Sequence[Span], flat: torch.Tensor) -> None:
    done = 0
    for span in spans:
        region[span.offset : span.offset + span.length].copy_(flat[done : done + span.length], non_blocking=True)
        done += span.length


def copy_out(region: torch.Tensor, spans: Sequence[Span], shape: Sequence[int], dtype: torch.dtype) -> torch.Tensor:
    """Copy `spans` of `region` into a new tensor of `shape` and `dtype` in host memory."""
    flat = torch.cat([region[span.offset : span.offset + span.length] for span in spans])
    return flat.view(dtype).view(*shape)
