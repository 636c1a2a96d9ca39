# SPDX-License-Identifier: Apache-2.0
"""What an agent brings in and makes room for, on the orders of its scheduler half."""

import asyncio
import logging
import threading
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from vllm_epd.errors import StuckReadError, TransferError
from vllm_epd.transfer import wire
from vllm_epd.transfer.fetch import Fetcher
from vllm_epd.transfer.store import Claim, EmbeddingStore, Place, lease_pin

logger = logging.getLogger(__name__)

ROOM_POLL_S = 0.001


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

    async def pull(self, number: int, handle: wire.EmbeddingHandle) -> None:
        """Have the bytes of `handle` here as landing `number`; the caller sets the time limit.

        Raises:
            TransferError: they cannot be had.
            asyncio.CancelledError: it was dropped before.
        """
        if number in self._landings:
            raise TransferError(f"there is a landing {number} already")
        self._open(number)
        task = self._pulls[number] = asyncio.create_task(self._bring(number, handle))
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
        with self._lock:
            landing = self._landings.get(number)
            if landing is not None:
                landing.loads += 1
                self._end_if_over(number, landing)
        return tensor

    def drop(self, number: int, loads: int) -> None:
        """Landing `number` is needed no more once it has been loaded `loads` times."""
        if number in self._pulls and self._pulls[number].cancel():
            return
        with self._lock:
            landing = self._landings.get(number)
            if landing is not None:
                landing.drop_after = loads
                self._end_if_over(number, landing)

    async def _bring(self, number: int, handle: wire.EmbeddingHandle) -> None:
        claim = Claim(handle.key, handle.nbytes, _pin(number))
        while True:
            (place,) = await self._room.claim([claim])
            if place is Place.HELD:
                return
            if await self._land(handle):
                return
            while self._store.status(handle.key) is Place.PENDING:
                await asyncio.sleep(ROOM_POLL_S)
            # Pinned anew: whoever gave up filling it took all claims on it along.
            if self._store.hold(handle.key, claim.pin):
                return

    async def _land(self, handle: wire.EmbeddingHandle) -> bool:
        """Fill the pages of `handle`; False if somebody else does."""
        spans = self._store.begin_landing(handle.key)
        if spans is None:
            return False
        try:
            fetched = await self._fetcher.fetch(handle, spans)
        except StuckReadError as error:
            logger.error("%d bytes of the pool are given up: %s", handle.nbytes, error)
            raise
        except BaseException:
            self._store.abandon_landing(handle.key)
            raise
        self._store.end_landing(handle.key, fetched.shape, fetched.dtype)
        return True

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

    async def reserve(self, items: Sequence[wire.Wanted]) -> list[int]:
        """Claim room for all items under their leases; the landings of those that are here already.

        Raises:
            PoolError: they would not fit an empty pool.
            TimeoutError: consumers do not make room in time.
            asyncio.CancelledError: one of the leases was withdrawn.
        """
        claims = [Claim(item.key, item.nbytes, lease_pin(item.lease), self._lease_s) for item in items]
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
        held = [item for item, place in zip(items, places, strict=True) if place is Place.HELD]
        return [item.landing for item in held if self._landings.adopt(item.landing, item.key)]

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


def _pin(number: int) -> str:
    return f"landing-{number}"
