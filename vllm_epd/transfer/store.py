# SPDX-License-Identifier: Apache-2.0
"""Embeddings in a registered region: what is offered, what has landed, and what is kept for later."""

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import partial
from math import inf
from typing import TypeVar

import torch

from vllm_epd.errors import EmbeddingLostError, PoolError
from vllm_epd.transfer.codec import NONE, decode
from vllm_epd.transfer.items import Claim, Place, StoredItem, lease_pin, spread
from vllm_epd.transfer.news import News
from vllm_epd.transfer.packing import Packer, Packing
from vllm_epd.transfer.pool import PagedPool, Span, whole_pages
from vllm_epd.transfer.region import Region
from vllm_epd.transfer.wire import PoolState

T = TypeVar("T")

MAX_ENDED = 4096
"""Leases whose end is remembered; the steps on their way are far fewer."""


class EmbeddingStore:
    """A region, its pages and what lies in them; used by the model's thread and the agent's.

    Every method takes the lock for microseconds and none waits for anything. Bytes are copied outside the lock, under
    pins that keep their pages until a device is done with them too.

    Attributes:
        news: is told when the bytes of an item are here, or will not come.
    """

    def __init__(self, region: Region, page_bytes: int, packing: Packing | None = None) -> None:
        """Keep embeddings in `region`, which stays the caller's; those of this instance's encoder as `packing` says."""
        self.news = News()
        self._region = region
        self._packer = Packer(packing or Packing())
        self._pool = PagedPool(region.nbytes, page_bytes)
        self._items: dict[str, StoredItem] = {}
        self._writing: dict[str, str] = {}
        self._busy: list[tuple[torch.Event, str]] = []
        self._copies = 0
        self._ended: OrderedDict[str, None] = OrderedDict()
        self._counts = dict.fromkeys(("hits", "encoded", "raw_bytes", "stored_bytes", "fetched", "fetched_bytes"), 0)
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
        if any(nbytes <= 0 for nbytes in sizes.values()) or not self._fits(sizes.values()):
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

    def has_room(self, nbytes: int) -> bool:
        """Whether so many bytes fit beside what is kept."""
        with self._lock:
            return self._pool.has_room([nbytes], self._sweep())

    def rooms(self, sizes: Sequence[int]) -> list[int]:
        """What to claim for the items of one request, that have `sizes` as the encoder makes them.

        Less where they will be encoded: once the codec is vouched for, and before that where the pool is too small
        for them as they are.
        """
        with self._lock:
            rooms = [self._packer.room(nbytes) for nbytes in sizes]
            return rooms if self._fits(rooms) else [self._packer.least_room(nbytes) for nbytes in sizes]

    def size(self, key: str) -> int | None:
        """What was claimed for `key`; None when it is not there at all."""
        with self._lock:
            return self._pool.nbytes(key) if key in self._pool else None

    def put(self, key: str, tensor: torch.Tensor, nbytes: int | None = None) -> None:
        """Copy what the encoder has made into the pool, unless it is there or on its way there already.

        It is unpinned but for the claims on it; without any it stays as a cache entry.

        Args:
            key: of the item.
            tensor: what the encoder has made.
            nbytes: that were claimed and announced, which tell whether it is encoded; by default it is not.

        Raises:
            PoolError: no pages were claimed for so many bytes and there is no room for it now, or it has no form of so
                many.
        """
        if self.status(key) is Place.HELD:
            return
        tensor = tensor.detach()
        packed, measured = self._packer.pack(tensor, nbytes or tensor.nbytes), self._packer.measure(tensor)
        flat = packed.flat
        made = StoredItem(
            (), tuple(tensor.shape), tensor.dtype, codec=packed.codec, finite=packed.finite, tried=packed.tried
        )
        item = self._fill(key, flat.numel(), made, partial(spread, flat), on_device=flat.is_cuda)
        if item is not None:
            with self._lock:
                self._packer.note(measured, item.written)

    def fill(
        self,
        key: str,
        nbytes: int,
        shape: Sequence[int],
        dtype: torch.dtype,
        write: Callable[[Sequence[torch.Tensor]], None],
        *,
        on_device: bool = False,
    ) -> None:
        """Have the bytes of `key` written where they belong, unless they are there or on their way there already.

        They are offered as they are written, whatever the packing.

        Args:
            key: of the item; as with `put`, unpinned but for the claims on it.
            nbytes: its size.
            shape: its shape.
            dtype: its dtype.
            write: gets the pieces of the region in order, each uint8 in one dimension, and fills them; on a device,
                on its current stream.
            on_device: whether `write` reads from a device.

        Raises:
            PoolError: no pages were claimed for so many bytes, and there is no room for it now.
        """
        self._fill(key, nbytes, StoredItem((), tuple(shape), dtype), write, on_device=on_device)

    def lease(self, key: str, lease: str, lease_s: float) -> int | None:
        """Lease `key` for `lease_s` from now on; its size, None when its bytes are not here or the lease was ended."""
        with self._lock:
            self._sweep()
            if key not in self._items or lease in self._ended:
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
        """Nobody comes for `lease` any more, also where it has yet to begin; False when it is unknown or ended before.

        A step that was ordered before may still be about to offer its item.
        """
        with self._lock:
            self._ended[lease] = None
            while len(self._ended) > MAX_ENDED:
                self._ended.popitem(last=False)
        return self.release(lease_pin(lease))

    def take(self, key: str, device: torch.device) -> torch.Tensor:
        """A copy of `key` on `device`.

        Raises:
            EmbeddingLostError: its bytes are not here.
        """

        def copy(item: StoredItem, pieces: Sequence[torch.Tensor]) -> tuple[StoredItem, torch.Tensor]:
            flat = torch.empty(sum(piece.numel() for piece in pieces), dtype=torch.uint8, device=device)
            for target, piece in zip(flat.split([piece.numel() for piece in pieces]), pieces, strict=True):
                target.copy_(piece, non_blocking=True)
            return item, flat

        item, flat = self.read(key, copy, on_device=device.type == "cuda")
        if item.codec != NONE:
            return decode(flat, item.shape, item.dtype, item.codec)
        return flat.view(item.dtype).view(item.shape)

    def read(self, key: str, use: Callable[[StoredItem, Sequence[torch.Tensor]], T], *, on_device: bool = False) -> T:
        """What `use` makes of `key`, whose pages stay what they are meanwhile.

        Args:
            key: of the item.
            use: gets the item and the pieces of the region that it consists of, each uint8 in one dimension and
                together as its codec encodes it; on a device, it reads them on its current stream.
            on_device: whether `use` writes to a device.

        Raises:
            EmbeddingLostError: its bytes are not here.
        """
        with self._lock:
            item = self._item(key)
            pin = self._begin_copy(key)
        copied = None
        try:
            made = use(item, self.pieces(item.spans))
            copied = self._event(on_device=on_device)
        finally:
            with self._lock:
                self._end_copy(pin, copied)
        return made

    def pieces(self, spans: Sequence[Span]) -> list[torch.Tensor]:
        """The bytes of pages that the caller has pinned, uint8 [length] each."""
        return [self._bytes(span) for span in spans]

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

    def end_landing(self, key: str, shape: Sequence[int], dtype: torch.dtype, codec: str = NONE) -> None:
        """The pages of `key` have been filled with a tensor, as `codec` encodes it."""
        with self._lock:
            item = StoredItem(self._pool.spans(key), tuple(shape), dtype, codec=codec)
            self._counts["fetched"] += 1
            self._counts["fetched_bytes"] += self._pool.nbytes(key)
            self._end_writing(key, item)

    def abandon_landing(self, key: str) -> None:
        """The pages of `key` were not filled: whoever else claimed it has lost it."""
        with self._lock:
            del self._writing[key]
            self._pool.remove(key)
        self.news.tell()

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
            guard = self._packer.guard
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
                raw_bytes=self._counts["raw_bytes"],
                stored_bytes=self._counts["stored_bytes"],
                fetched=self._counts["fetched"],
                fetched_bytes=self._counts["fetched_bytes"],
                codec=self._packer.packing.codec,
                codec_state=guard.state.value,
                codec_error=guard.worst,
            )

    def _fill(
        self,
        key: str,
        nbytes: int,
        made: StoredItem,
        write: Callable[[Sequence[torch.Tensor]], None],
        *,
        on_device: bool,
    ) -> StoredItem | None:
        """What has become of `made`, which lies nowhere yet; None if `key` is there or on its way there already."""
        with self._lock:
            if key in self._items or key in self._writing:
                return None
            self._make_place(key, nbytes)
            spans = self._begin_writing(key)
        try:
            write(self.pieces(spans))
        except BaseException:
            self.abandon_landing(key)
            raise
        item = replace(made, spans=spans, written=self._event(on_device=on_device))
        with self._lock:
            self._counts["encoded"] += 1
            self._counts["raw_bytes"] += item.raw_bytes
            self._counts["stored_bytes"] += nbytes
            self._end_writing(key, item)
        return item

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
        spans = self._pool.reserve(key, nbytes, now)
        self._items = {held: item for held, item in self._items.items() if held in self._pool}
        if spans is None:
            return False
        self._region.reach(max(span.offset + span.length for span in spans))
        return True

    def _begin_writing(self, key: str) -> tuple[Span, ...]:
        """The pages of `key`, which nobody else gets or fills until `_end_writing`."""
        self._writing[key] = self._begin_copy(key)
        return self._pool.spans(key)

    def _end_writing(self, key: str, item: StoredItem) -> None:
        self._items[key] = item
        self._end_copy(self._writing.pop(key), item.written)
        self.news.tell()

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

    def _event(self, *, on_device: bool) -> torch.Event | None:
        """Ends what the current stream does with the region; None where no device takes part."""
        if not (on_device or self._region.on_device):
            return None
        event = torch.cuda.Event()
        event.record()
        return event

    def _bytes(self, span: Span) -> torch.Tensor:
        return self._region.tensor[span.offset : span.offset + span.length]

    def _fits(self, sizes: Iterable[int]) -> bool:
        """Whether an empty pool has room for items of these sizes."""
        return sum(whole_pages(nbytes, self._pool.page_bytes) for nbytes in sizes) <= self.capacity_bytes
