# SPDX-License-Identifier: Apache-2.0
"""Embeddings in a registered region: what is offered, what has landed, and what is kept for later."""

import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from math import inf

import torch

from vllm_epd.errors import EmbeddingLostError, PoolError
from vllm_epd.transfer.pool import PagedPool, Span, whole_pages
from vllm_epd.transfer.region import Region
from vllm_epd.transfer.wire import PoolState


@dataclass(frozen=True, slots=True)
class StoredItem:
    """What is needed to read an item: where it lies, its shape, and an event after which its bytes are there."""

    spans: tuple[Span, ...]
    shape: tuple[int, ...]
    dtype: torch.dtype
    written: torch.Event | None = None

    @property
    def ready(self) -> bool:
        """Whether the device has written the bytes."""
        return self.written is None or bool(self.written.query())


@dataclass(frozen=True, slots=True)
class Claim:
    """One item that is to be kept: `nbytes` under a pin that ends by itself after `pin_s`."""

    key: str
    nbytes: int
    pin: str
    pin_s: float = inf


class Place(Enum):
    """What a claim has found."""

    HELD = "held"
    """The bytes are there."""
    NEW = "new"
    """Pages for the claimer to fill."""
    PENDING = "pending"
    """Pages that somebody else has claimed and not filled yet."""


def lease_pin(lease: str) -> str:
    """The pin of a lease: what a peer names as a lease can never be a pin of another kind."""
    return f"lease-{lease}"


class EmbeddingStore:
    """A region, its pages and what lies in them; used by the model's thread and the agent's.

    Every method takes the lock for microseconds and none waits for anything. Bytes are copied outside the lock, under
    pins that keep their pages until a device is done with them too.
    """

    def __init__(self, region: Region, page_bytes: int) -> None:
        """Keep embeddings in `region`, which stays the caller's."""
        self._region = region
        self._pool = PagedPool(region.nbytes, page_bytes)
        self._items: dict[str, StoredItem] = {}
        self._writing: dict[str, str] = {}
        self._busy: list[tuple[torch.Event, str]] = []
        self._copies = 0
        self._counts = dict.fromkeys(("hits", "encoded", "fetched", "fetched_bytes"), 0)
        self._lock = threading.Lock()

    @property
    def capacity_bytes(self) -> int:
        """The most that it can hold."""
        return self._pool.capacity_bytes

    def claim(self, claims: Sequence[Claim]) -> list[Place] | None:
        """Pin all items, with pages for those that are not there yet; None, and no change, where they do not fit.

        Raises:
            PoolError: they would not fit an empty pool either.
        """
        sizes = {claim.key: claim.nbytes for claim in claims}
        if (
            any(nbytes <= 0 for nbytes in sizes.values())
            or sum(map(self._rounded, sizes.values())) > self.capacity_bytes
        ):
            raise PoolError(
                f"{len(sizes)} embeddings of {sum(sizes.values())} bytes do not fit a pool of {self.capacity_bytes}"
                " bytes; raise --epd-pool-bytes"
            )
        with self._lock:
            now = self._sweep()
            there = [claim for claim in claims if claim.key in self._pool]
            for claim in there:
                self._pool.pin(claim.key, claim.pin, now + claim.pin_s)
            if not self._pool.has_room((size for key, size in sizes.items() if key not in self._pool), now):
                for claim in there:
                    self._unpin(claim.pin)
                return None
            return [self._claim(claim, now) for claim in claims]

    def put(self, key: str, tensor: torch.Tensor) -> None:
        """Copy what the encoder has made into the pool, unless it is there or on its way there already.

        It is unpinned but for the claims on it; without any it stays as a cache entry.

        Raises:
            PoolError: no pages were claimed for so many bytes, and there is no room for it now.
        """
        flat = tensor.detach().contiguous().view(-1).view(torch.uint8)
        with self._lock:
            if key in self._items or key in self._writing:
                return
            self._make_place(key, flat.numel())
            spans = self._begin_writing(key)
        done = 0
        for span in spans:
            self._bytes(span).copy_(flat[done : done + span.length], non_blocking=True)
            done += span.length
        written = self._event(flat)
        with self._lock:
            self._counts["encoded"] += 1
            self._end_writing(key, StoredItem(spans, tuple(tensor.shape), tensor.dtype, written))

    def lease(self, key: str, lease: str, lease_s: float) -> int | None:
        """Lease `key` for `lease_s` from now on; its size, None when its bytes are not here."""
        with self._lock:
            self._sweep()
            if key not in self._items:
                return None
            self._pool.pin(key, lease_pin(lease), time.monotonic() + lease_s)
            return self._pool.nbytes(key)

    def count_hit(self) -> None:
        """Somebody got what is here instead of having it made."""
        with self._lock:
            self._counts["hits"] += 1

    def hold(self, key: str, pin: str) -> bool:
        """Pin `key` until `release(pin)`; False when its bytes are not here."""
        with self._lock:
            if key not in self._items:
                return False
            self._pool.pin(key, pin, inf)
            return True

    def end_lease(self, lease: str) -> bool:
        """Nobody comes for `lease` any more; False when it is unknown or ended before."""
        return self.release(lease_pin(lease))

    def take(self, key: str, device: torch.device) -> torch.Tensor:
        """A copy of `key` on `device`.

        Raises:
            EmbeddingLostError: its bytes are not here.
        """
        with self._lock:
            item = self._item(key)
            pin = self._begin_copy(key)
        nbytes = sum(span.length for span in item.spans)
        flat = torch.empty(nbytes, dtype=torch.uint8, device=device)
        done = 0
        for span in item.spans:
            flat[done : done + span.length].copy_(self._bytes(span), non_blocking=True)
            done += span.length
        copied = self._event(flat)
        with self._lock:
            self._end_copy(pin, copied)
        return flat.view(item.dtype).view(item.shape)

    def grant(self, key: str, grant: str, grant_s: float) -> StoredItem:
        """Pin `key` for a reader.

        Raises:
            EmbeddingLostError: its bytes are not here.
        """
        with self._lock:
            self._sweep()
            item = self._item(key)
            self._pool.pin(key, grant, time.monotonic() + grant_s)
            return item

    def begin_landing(self, key: str) -> tuple[Span, ...] | None:
        """The pages of a claimed `key` for a transport to fill; None if somebody else fills or has filled them."""
        with self._lock:
            if key in self._items or key in self._writing:
                return None
            return self._begin_writing(key)

    def end_landing(self, key: str, shape: Sequence[int], dtype: torch.dtype) -> None:
        """The pages of `key` have been filled."""
        with self._lock:
            item = StoredItem(self._pool.spans(key), tuple(shape), dtype)
            self._counts["fetched"] += 1
            self._counts["fetched_bytes"] += self._pool.nbytes(key)
            self._end_writing(key, item)

    def abandon_landing(self, key: str) -> None:
        """The pages of `key` were not filled: whoever else claimed it has lost it."""
        with self._lock:
            del self._writing[key]
            self._pool.remove(key)

    def status(self, key: str) -> Place | None:
        """What a claim on `key` would find; None when it is not there at all."""
        with self._lock:
            if key in self._items:
                return Place.HELD
            return Place.PENDING if key in self._pool else None

    def release(self, pin: str) -> bool:
        """End a grant or a claim; False when it is unknown or ended before."""
        with self._lock:
            self._sweep()
            return self._unpin(pin)

    def state(self) -> PoolState:
        """How full the region is, counting no pin that has run out."""
        with self._lock:
            self._sweep()
            return PoolState(
                capacity_bytes=self._pool.capacity_bytes,
                free_bytes=self._pool.free_bytes,
                items=len(self._pool),
                pinned=self._pool.pinned,
                pinned_bytes=self._pool.pinned_bytes,
                evicted=self._pool.evicted,
                expired=self._pool.expired,
                hits=self._counts["hits"],
                encoded=self._counts["encoded"],
                fetched=self._counts["fetched"],
                fetched_bytes=self._counts["fetched_bytes"],
            )

    def _claim(self, claim: Claim, now: float) -> Place:
        place = Place.NEW
        if claim.key in self._items:
            place = Place.HELD
            self._counts["hits"] += 1
        elif claim.key in self._pool:
            place = Place.PENDING
        else:
            self._reserve(claim.key, claim.nbytes, now)
        self._pool.pin(claim.key, claim.pin, now + claim.pin_s)
        return place

    def _make_place(self, key: str, nbytes: int) -> None:
        """Have pages of just this size for `key`: those that were claimed, or new ones."""
        if key in self._pool:
            if self._pool.nbytes(key) != nbytes:
                raise PoolError(f"{self._pool.nbytes(key)} bytes were claimed for {key!r}, which has {nbytes}")
            return
        if not self._reserve(key, nbytes, self._sweep()):
            raise PoolError(f"no room for {nbytes} bytes: the pool is full and nothing was claimed for {key!r}")

    def _reserve(self, key: str, nbytes: int, now: float) -> bool:
        reserved = self._pool.reserve(key, nbytes, now) is not None
        self._items = {held: item for held, item in self._items.items() if held in self._pool}
        return reserved

    def _begin_writing(self, key: str) -> tuple[Span, ...]:
        """The pages of `key`, which nobody else gets or fills until `_end_writing`."""
        self._writing[key] = self._begin_copy(key)
        return self._pool.spans(key)

    def _end_writing(self, key: str, item: StoredItem) -> None:
        self._items[key] = item
        self._end_copy(self._writing.pop(key), item.written)

    def _item(self, key: str) -> StoredItem:
        item = self._items.get(key)
        if item is None:
            raise EmbeddingLostError(f"{key!r} is not held (never offered, or evicted after its lease)")
        return item

    def _unpin(self, pin: str) -> bool:
        key = self._pool.unpin(pin)
        if key is not None:
            self._forget_empty(key)
        return key is not None

    def _forget_empty(self, key: str) -> None:
        """Pages that nobody has filled and nobody claims any more hold nothing worth keeping."""
        if key not in self._items and key not in self._writing and not self._pool.is_pinned(key):
            self._pool.remove(key)

    def _begin_copy(self, key: str) -> str:
        """Keep the pages of `key` for the length of a copy."""
        self._copies += 1
        pin = f"copy-{self._copies}"
        self._pool.pin(key, pin, inf)
        return pin

    def _end_copy(self, pin: str, copied: torch.Event | None) -> None:
        if copied is None:
            self._unpin(pin)
        else:
            self._busy.append((copied, pin))

    def _sweep(self) -> float:
        """End the pins of copies that a device has finished and those that have run out; the time it is."""
        busy, self._busy = self._busy, []
        for copied, pin in busy:
            if copied.query():
                self._unpin(pin)
            else:
                self._busy.append((copied, pin))
        now = time.monotonic()
        if self._pool.expire(now):
            for key in [key for key in self._pool if key not in self._items]:
                self._forget_empty(key)
        return now

    def _event(self, flat: torch.Tensor) -> torch.Event | None:
        if not (flat.is_cuda or self._region.on_device):
            return None
        event = torch.cuda.Event()
        event.record()
        return event

    def _bytes(self, span: Span) -> torch.Tensor:
        return self._region.tensor[span.offset : span.offset + span.length]

    def _rounded(self, nbytes: int) -> int:
        return whole_pages(nbytes, self._pool.page_bytes)
