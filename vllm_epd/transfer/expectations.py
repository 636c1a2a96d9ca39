# SPDX-License-Identifier: Apache-2.0
"""Items that are fetched as their producer makes them, before anybody here has asked for them."""

import asyncio
import itertools
import logging
from collections.abc import Iterable

from vllm_epd.errors import TransferError
from vllm_epd.transfer import wire
from vllm_epd.transfer.fetch import Fetcher
from vllm_epd.transfer.landings import Landings
from vllm_epd.transfer.store import EmbeddingStore

logger = logging.getLogger(__name__)

ASKED = 2
"""Items of one transfer that are asked for at once, so that the way there is not taken anew for each."""

SHARE = 0.5
"""Of the region, for what is only expected: those who wait for something by name must always find room."""


class Expectations:
    """Transfers that a consumer was told of. Used in the agent's event loop.

    What is expected is kept until it is forgotten or `keep_s` have passed; who asks for it by then finds it here, or
    on its way. What there is no room for now is left to whoever asks for it.
    """

    def __init__(self, store: EmbeddingStore, landings: Landings, fetcher: Fetcher, keep_s: float) -> None:
        """Land in `store` what `fetcher` brings."""
        self._store = store
        self._landings = landings
        self._fetcher = fetcher
        self._keep_s = keep_s
        self._numbers = itertools.count(-1, -1)  # those of the scheduler's landings are not negative
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._expected_bytes = 0

    def expect(self, order: wire.Expect) -> None:
        """Begin to fetch what belongs to a transfer."""
        if order.transfer not in self._tasks:
            task = self._tasks[order.transfer] = asyncio.create_task(self._follow(order))
            task.add_done_callback(lambda _: self._tasks.pop(order.transfer, None))

    def forget(self, transfer: str) -> None:
        """Let go of a transfer, however much of it is here."""
        if transfer in self._tasks:
            self._tasks[transfer].cancel()

    async def _follow(self, order: wire.Expect) -> None:
        taken = 0
        pulls: dict[int, asyncio.Task[None]] = {}
        try:
            async with asyncio.timeout(self._keep_s):
                for key, nbytes in await self._fetcher.list_transfer(order.transfer, order.epoch, order.rank):
                    await _fewer_than(ASKED, pulls.values())
                    if not self._has_budget(nbytes):
                        break
                    self._expected_bytes += nbytes
                    taken += nbytes
                    number = next(self._numbers)
                    pulls[number] = asyncio.create_task(
                        self._landings.pull(number, _handle(order, key, nbytes), wait=True)
                    )
                await asyncio.gather(*pulls.values())
                await asyncio.Event().wait()
        except TimeoutError:
            pass
        except TransferError as error:
            logger.info("transfer %s is left to who asks for it: %s", order.transfer, error)
        finally:
            self._expected_bytes -= taken
            for number, pull in pulls.items():
                pull.cancel()
                self._landings.drop(number, 0)
            await asyncio.gather(*pulls.values(), return_exceptions=True)

    def _has_budget(self, nbytes: int) -> bool:
        return self._expected_bytes + nbytes <= SHARE * self._store.capacity_bytes and self._store.has_room(nbytes)


async def _fewer_than(count: int, tasks: Iterable[asyncio.Task[None]]) -> None:
    """Wait until so few tasks are running; what failed is raised."""
    while len(running := [each for each in tasks if not each.done()]) >= count:
        await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
    for each in tasks:
        if each.done():
            each.result()


def _handle(order: wire.Expect, key: str, nbytes: int) -> wire.EmbeddingHandle:
    return wire.EmbeddingHandle(wire.WIRE_VERSION, key, order.transfer, order.epoch, order.rank, nbytes)
