# SPDX-License-Identifier: Apache-2.0
"""Bookkeeping of a paged region of memory: who holds which pages, and until when.

Pure: no bytes, no threads, no clock of its own. The owner of the region calls it under a lock and moves the
bytes.
"""

from collections import OrderedDict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

from vllm_epd.errors import EmbeddingLostError, PoolError
from vllm_epd.transfer.pages import FreePages, Run

PAGE_BYTES = 64 * 1024
"""Size of the pages of an instance's pool."""


def whole_pages(nbytes: int, page_bytes: int = PAGE_BYTES) -> int:
    """The bytes of the pages that `nbytes` take up."""
    return -(-nbytes // page_bytes) * page_bytes


class Span(NamedTuple):
    """A run of bytes of a region: `offset` from its start and `length`, both in bytes."""

    offset: int
    length: int


class _Pin(NamedTuple):
    key: str
    deadline: float


@dataclass(slots=True)
class _Item:
    runs: tuple[Run, ...]
    spans: tuple[Span, ...]
    nbytes: int
    pins: set[str] = field(default_factory=set)


class PagedPool:
    """Pages of one region, items made of pages, pins that keep an item from eviction.

    A pin is a lease (a consumer may still come) or a grant (a consumer is reading). An item without a live pin
    stays as a cache entry until its pages are wanted; the least recently used goes first.
    """

    def __init__(self, capacity_bytes: int, page_bytes: int) -> None:
        """Divide `capacity_bytes` into pages of `page_bytes`; a rest smaller than a page stays unused."""
        if page_bytes <= 0 or capacity_bytes < page_bytes:
            raise PoolError(f"a pool of {capacity_bytes} bytes holds no page of {page_bytes} bytes")
        self.page_bytes = page_bytes
        self.num_pages = capacity_bytes // page_bytes
        self._free = FreePages(self.num_pages)
        self._items: OrderedDict[str, _Item] = OrderedDict()
        self._pins: dict[str, _Pin] = {}
        self.evicted = 0
        self.expired = 0

    @property
    def capacity_bytes(self) -> int:
        """Bytes that all pages hold together."""
        return self.num_pages * self.page_bytes

    @property
    def free_bytes(self) -> int:
        """Bytes in pages that belong to no item."""
        return self._free.count * self.page_bytes

    @property
    def pinned(self) -> int:
        """Number of items that a lease or a grant holds."""
        return sum(bool(item.pins) for item in self._items.values())

    @property
    def pinned_bytes(self) -> int:
        """The size of the items that a lease or a grant holds."""
        return sum(item.nbytes for item in self._items.values() if item.pins)

    def has_room(self, sizes: Iterable[int], now: float) -> bool:
        """Whether items of these sizes in bytes fit beside what is pinned."""
        self.expire(now)
        evictable = sum(self._pages(item.nbytes) for item in self._items.values() if not item.pins)
        return sum(self._pages(nbytes) for nbytes in sizes) <= self._free.count + evictable

    def nbytes(self, key: str) -> int:
        """The size of `key`.

        Raises:
            EmbeddingLostError: `key` is not held.
        """
        return self._held(key).nbytes

    def is_pinned(self, key: str) -> bool:
        """Whether a lease or a grant holds `key`."""
        return key in self._items and bool(self._items[key].pins)

    def __contains__(self, key: str) -> bool:
        return key in self._items

    def __iter__(self) -> Iterator[str]:
        return iter(tuple(self._items))

    def __len__(self) -> int:
        return len(self._items)

    def reserve(self, key: str, nbytes: int, now: float) -> tuple[Span, ...] | None:
        """Give `key` pages for `nbytes`, evicting what nobody pins; None when the pinned items leave no room.

        The item has no pin yet: `pin` it before the next call to `reserve`.

        Raises:
            PoolError: the item is larger than the whole pool, or `key` is held already.
        """
        if nbytes <= 0 or nbytes > self.capacity_bytes:
            raise PoolError(
                f"an item of {nbytes} bytes does not fit a pool of {self.capacity_bytes} bytes; raise --epd-pool-bytes"
            )
        if key in self._items:
            raise PoolError(f"{key!r} is held already")
        wanted = self._pages(nbytes)
        if not self._make_room(wanted, now):
            return None
        runs = self._free.take(wanted)
        self._items[key] = _Item(runs, self._spans(runs, nbytes), nbytes)
        return self.spans(key)

    def spans(self, key: str) -> tuple[Span, ...]:
        """The bytes of `key` in order, neighbouring pages joined.

        Raises:
            EmbeddingLostError: `key` is not held.
        """
        return self._held(key).spans

    def pin(self, key: str, pin_id: str, deadline: float) -> None:
        """Keep `key` until `unpin(pin_id)` or `deadline`; a second call with the same id moves the deadline.

        Raises:
            EmbeddingLostError: `key` is not held.
            PoolError: the id pins another item.
        """
        item = self._held(key)
        if pin_id in self._pins and self._pins[pin_id].key != key:
            raise PoolError(f"pin {pin_id!r} holds another item already")
        item.pins.add(pin_id)
        self._items.move_to_end(key)
        self._pins[pin_id] = _Pin(key, deadline)

    def unpin(self, pin_id: str) -> str | None:
        """Let go of a pin; the key it held, None when there is none of that id (a repeated or late acknowledgement)."""
        pin = self._pins.pop(pin_id, None)
        if pin is None:
            return None
        self._items[pin.key].pins.discard(pin_id)
        return pin.key

    def remove(self, key: str) -> None:
        """Forget `key` with its pins, if it is held."""
        if key not in self._items:
            return
        for pin_id in tuple(self._items[key].pins):
            del self._pins[pin_id]
        self._free.give(self._items.pop(key).runs)

    def expire(self, now: float) -> int:
        """Let go of all pins whose deadline has passed; returns how many."""
        late = [pin_id for pin_id, pin in self._pins.items() if pin.deadline <= now]
        for pin_id in late:
            self.unpin(pin_id)
        self.expired += len(late)
        return len(late)

    def _make_room(self, wanted: int, now: float) -> bool:
        if self._free.count >= wanted:
            return True
        self.expire(now)
        for key in [key for key, item in self._items.items() if not item.pins]:
            if self._free.count >= wanted:
                break
            self.remove(key)
            self.evicted += 1
        return self._free.count >= wanted

    def _spans(self, runs: Iterable[Run], nbytes: int) -> tuple[Span, ...]:
        """The first `nbytes` of the pages of `runs`."""
        spans: list[Span] = []
        for run in runs:
            length = min(nbytes, run.length * self.page_bytes)
            spans.append(Span(run.first * self.page_bytes, length))
            nbytes -= length
        return tuple(spans)

    def _pages(self, nbytes: int) -> int:
        return -(-nbytes // self.page_bytes)

    def _held(self, key: str) -> _Item:
        item = self._items.get(key)
        if item is None:
            raise EmbeddingLostError(f"{key!r} is not held (never offered, or evicted after its lease)")
        return item
