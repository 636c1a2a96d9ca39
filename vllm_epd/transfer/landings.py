# SPDX-License-Identifier: Apache-2.0
"""What an agent brings in and makes room for, on the orders of its scheduler half."""

import asyncio
import logging
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from vllm_epd.errors import DamagedError, StuckReadError, TransferError
from vllm_epd.transfer import wire
from vllm_epd.transfer.checksum import checksum
from vllm_epd.transfer.fetch import Fetched, Fetcher
from vllm_epd.transfer.items import Claim, Place, StoredItem, lease_pin
from vllm_epd.transfer.pool import Span
from vllm_epd.transfer.store import EmbeddingStore

logger = logging.getLogger(__name__)

ROOM_POLL_S = 0.001
MAX_LISTED = 1024
"""Transfers whose items are remembered; a consumer asks within the first moments of one."""


class Room:
    """Waits for room in a store, first come, first served; the caller sets the time limit.

    Were small claims let past large ones, a large one might wait for ever; were the items of one request claimed one
    by one, two requests might each wait for what the other has.
    """

    def __init__(self, store: EmbeddingStore) -> None:
        self._store = store
        self._turn = asyncio.Lock()

    async def claim(self, claims: Sequence[Claim]) -> list[Place]:
        """Claim all at once as soon as they fit; PoolError where they never will."""
        if all(self._store.status(claim.key) is Place.HELD for claim in claims):
            places = self._store.claim(claims)
            if places is not None:
                return places
        async with self._turn:
            while (places := self._store.claim(claims)) is None:
                await asyncio.sleep(ROOM_POLL_S)
            return places


@dataclass(slots=True)
class _Landing:
    """How often it has been loaded, and after how many loads it is needed no more."""

    loads: int = 0
    drop_after: int | None = None

    @property
    def over(self) -> bool:
        return self.drop_after is not None and self.loads >= self.drop_after


class Landings:
    """Embeddings that the model will load, each pinned from the moment it is wanted until it is dropped.

    `load` is called by the model's thread, all else in the agent's event loop.
    """

    def __init__(self, store: EmbeddingStore, fetcher: Fetcher, room: Room) -> None:
        """Land in `store` what `fetcher` brings."""
        self._store = store
        self._fetcher = fetcher
        self._room = room
        self._landings: dict[int, _Landing] = {}
        self._pulls: dict[int, asyncio.Task[None]] = {}
        self._lock = threading.Lock()

    async def pull(self, number: int, handle: wire.EmbeddingHandle, *, wait: bool = False) -> None:
        """Have the bytes of `handle` here as landing `number`; the caller sets the time limit.

        With `wait`, those that the producer has yet to make.

        Raises:
            TransferError: they cannot be had.
            asyncio.CancelledError: it was dropped before.
        """
        if number in self._landings:
            raise TransferError(f"there is a landing {number} already")
        self._open(number)
        task = self._pulls[number] = asyncio.create_task(self._bring(number, handle, wait))
        try:
            await task
        except BaseException:
            self._close(number)
            raise
        finally:
            del self._pulls[number]

    def adopt(self, number: int, key: str) -> bool:
        """Pin `key`, whose bytes are here, as landing `number`; False if they are not here any more."""
        held = self._store.hold(key, _pin(number))
        if held:
            self._open(number)
        return held

    def load(self, number: int, key: str, device: torch.device) -> torch.Tensor:
        """A copy of landing `number` on `device`.

        Raises:
            EmbeddingLostError: it is not here, or was dropped.
        """
        tensor = self._store.take(key, device)
        self._count_load(number)
        return tensor

    def read(
        self, number: int, key: str, use: Callable[[StoredItem, Sequence[torch.Tensor]], None], *, on_device: bool
    ) -> None:
        """Have `use` read landing `number` where it lies, see `EmbeddingStore.read`; counts as a load.

        Raises:
            EmbeddingLostError: it is not here, or was dropped.
        """
        self._store.read(key, use, on_device=on_device)
        self._count_load(number)

    def drop(self, number: int, loads: int) -> None:
        """Landing `number` is needed no more once it has been loaded `loads` times."""
        if number in self._pulls and self._pulls[number].cancel():
            return
        with self._lock:
            landing = self._landings.get(number)
            if landing is not None:
                landing.drop_after = loads
                self._end_if_over(number, landing)

    async def _bring(self, number: int, handle: wire.EmbeddingHandle, wait: bool) -> None:
        claim = Claim(handle.key, handle.nbytes, _pin(number))
        while True:
            (place,) = await self._room.claim([claim])
            if place is Place.HELD:
                return
            if await self._land(handle, wait):
                return
            await self._store.news.until(lambda: self._store.status(handle.key) is not Place.PENDING)
            # Pinned anew: whoever gave up filling it took all claims on it along.
            if self._store.hold(handle.key, claim.pin):
                return

    async def _land(self, handle: wire.EmbeddingHandle, wait: bool) -> bool:
        """Fill the pages of `handle`; False if somebody else does."""
        spans = self._store.begin_landing(handle.key)
        if spans is None:
            return False
        try:
            fetched = await self._fetcher.fetch(handle, spans, wait=wait)
            await self._check(handle.key, spans, fetched)
        except StuckReadError as error:
            logger.error("%d bytes of the pool are given up: %s", handle.nbytes, error)
            raise
        except BaseException:
            self._store.abandon_landing(handle.key)
            raise
        self._store.end_landing(handle.key, fetched.shape, fetched.dtype, fetched.codec)
        return True

    async def _check(self, key: str, spans: Sequence[Span], fetched: Fetched) -> None:
        if fetched.checksum is None:
            return
        found = await checksum(self._store.pieces(spans))
        if found != fetched.checksum:
            raise DamagedError(
                f"{key!r} arrived damaged: checksum {found:08x}, the producer's is {fetched.checksum:08x}"
            )

    def _count_load(self, number: int) -> None:
        with self._lock:
            landing = self._landings.get(number)
            if landing is not None:
                landing.loads += 1
                self._end_if_over(number, landing)

    def _open(self, number: int) -> None:
        with self._lock:
            self._landings[number] = _Landing()

    def _close(self, number: int) -> None:
        with self._lock:
            self._landings.pop(number, None)
            self._store.release(_pin(number))

    def _end_if_over(self, number: int, landing: _Landing) -> None:
        if landing.over:
            del self._landings[number]
            self._store.release(_pin(number))


@dataclass(frozen=True, slots=True)
class Offered:
    """What a reservation has found.

    Attributes:
        held: landings of the items that are here already.
        sizes: of all items as they are or will be in the pool, in bytes; an item that is here, or that somebody else
            has claimed, may have another form than one that is new.
    """

    held: list[int]
    sizes: list[int]


class Offers:
    """Room for what the encoder is about to make; leases for what is here. Used in the agent's event loop."""

    def __init__(self, store: EmbeddingStore, landings: Landings, room: Room, lease_s: float, timeout_s: float) -> None:
        """Lease for `lease_s`; wait for room for up to `timeout_s`."""
        self._store = store
        self._landings = landings
        self._room = room
        self._lease_s = lease_s
        self._timeout_s = timeout_s
        self._waiting: dict[str, asyncio.Task[list[Place]]] = {}
        self._listed: OrderedDict[str, list[tuple[wire.Wanted, int]]] = OrderedDict()

    def listed(self, transfer: str) -> list[tuple[str, int]] | None:
        """Keys and sizes, as offered, of the items of a transfer; None where it is not known, or not any more."""
        items = self._listed.get(transfer)
        return None if items is None else [(item.key, nbytes) for item, nbytes in items]

    def forget(self, transfer: str) -> None:
        """Nobody will come for what belongs to a transfer."""
        for item, _ in self._listed.pop(transfer, ()):
            self._store.end_lease(item.lease)

    async def reserve(self, items: Sequence[wire.Wanted], transfer: str = "") -> Offered:
        """Claim room for all items under their leases.

        Once there is room, they are listed as `transfer`, where a name is given.

        Raises:
            PoolError: they would not fit an empty pool.
            TimeoutError: consumers do not make room in time.
            asyncio.CancelledError: one of the leases was withdrawn.
        """
        sizes = self._store.rooms([item.nbytes for item in items])
        claims = [
            Claim(item.key, nbytes, lease_pin(item.lease), self._lease_s)
            for item, nbytes in zip(items, sizes, strict=True)
        ]
        task = asyncio.create_task(self._room.claim(claims))
        self._waiting |= dict.fromkeys((item.lease for item in items), task)
        try:
            async with asyncio.timeout(self._timeout_s):
                places = await task
            if any(item.lease not in self._waiting for item in items):
                raise asyncio.CancelledError
        finally:
            for item in items:
                self._waiting.pop(item.lease, None)
        sizes = [self._store.size(claim.key) or claim.nbytes for claim in claims]
        if transfer:
            self._list(transfer, items, sizes)
        held = [item for item, place in zip(items, places, strict=True) if place is Place.HELD]
        return Offered([item.landing for item in held if self._landings.adopt(item.landing, item.key)], sizes)

    def take(self, key: str, lease: str) -> int | None:
        """Lease `key` to one more consumer; its size, None where it is not here."""
        nbytes = self._store.lease(key, lease, self._lease_s)
        if nbytes is not None:
            self._store.count_hit()
        return nbytes

    def withdraw(self, leases: Sequence[str], landings: Sequence[int] = ()) -> None:
        """Nobody will come for these leases, nor for room under them, nor load these landings."""
        for lease in leases:
            if (waiting := self._waiting.pop(lease, None)) is not None:
                waiting.cancel()
            self._store.end_lease(lease)
        for landing in landings:
            self._landings.drop(landing, 0)

    def _list(self, transfer: str, items: Sequence[wire.Wanted], sizes: Sequence[int]) -> None:
        self._listed[transfer] = list(zip(items, sizes, strict=True))
        while len(self._listed) > MAX_LISTED:
            self._listed.popitem(last=False)
        self._store.news.tell()


def _pin(number: int) -> str:
    return f"landing-{number}"
