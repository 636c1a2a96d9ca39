# SPDX-License-Identifier: Apache-2.0
"""What one request holds of the pools of encode instances, and when that ends. No I/O."""

from collections.abc import Callable, Iterable, Sequence
from functools import partial

from msgspec import Struct

from vllm_epd.router.embeddings import Lease
from vllm_epd.router.instances import Instance
from vllm_epd.router.media import EncodedItem
from vllm_epd.router.pools import Slot
from vllm_epd.types import Fingerprint

#: Is told of which instances one may have room now.
Freed = Callable[[Fingerprint], None]
#: Tells an instance that some leases are not needed any more, and calls back when it has been told.
Release = Callable[[Instance, Sequence[Lease], Callable[[], None]], None]


class Hold:
    """A request's share of one slot, from construction to `end`."""

    def __init__(self, instance: Instance, slot: Slot, nbytes: int, freed: Freed) -> None:
        self.instance = instance
        self.slot = slot
        self.nbytes = nbytes
        self._freed = freed
        self._ended = False
        instance.pool.take(slot, nbytes)

    def move(self, instance: Instance, slot: Slot, nbytes: int) -> None:
        """Take a share of another slot instead."""
        left, self.instance = self.instance, instance
        instance.pool.take(slot, nbytes)
        left.pool.drop(self.slot)
        self.slot, self.nbytes = slot, nbytes
        self._freed(left.info.fingerprint)

    def end(self) -> None:
        """Give the share back; once, however often it is called."""
        if not self._ended:
            self._ended = True
            self.instance.pool.drop(self.slot)
            self._freed(self.instance.info.fingerprint)


class Leased(Struct, frozen=True, eq=False):
    """One embedding that is kept for a request.

    Attributes:
        item: what the next stages are told of it.
        hold: the room that it takes.
        lease: what keeps it; None if its handle does not tell.
    """

    item: EncodedItem
    hold: Hold
    lease: Lease | None


class Leases:
    """The embeddings that are kept for one request; its branches share them.

    Attributes:
        prefills: prefills that will still read them.
    """

    def __init__(self) -> None:
        self.prefills = 1
        self._held: list[Leased] = []

    def add(self, leased: Leased) -> None:
        """Note one that is kept from now on."""
        self._held.append(leased)

    def prefilled(self) -> None:
        """One prefill is over: after the last one its instance has the bytes and has given back the leases itself."""
        self.prefills -= 1
        if self.prefills <= 0:
            for each in self._held:
                each.hold.end()
            self._held.clear()

    def drop_unread(self, read: Iterable[EncodedItem], release: Release) -> None:
        """Give back those that are not among `read`, which are all that prefill is told of."""
        told = {id(item) for item in read}
        unread = [each for each in self._held if id(each.item) not in told]
        self._held = [each for each in self._held if each not in unread]
        _give_back(unread, release)

    def abandon(self, release: Release) -> None:
        """Give back all that are left: nobody will read them."""
        held, self._held = self._held, []
        _give_back(held, release)


def _give_back(held: Sequence[Leased], release: Release) -> None:
    """The room of a lease is free once its instance knows."""
    by_agent: dict[tuple[Instance, int], dict[Lease, Hold]] = {}
    for each in held:
        if each.lease is None:
            each.hold.end()
        else:
            by_agent.setdefault((each.hold.instance, each.lease.rank), {})[each.lease] = each.hold
    for (instance, _), leases in by_agent.items():
        release(instance, list(leases), partial(_end, list(leases.values())))


def _end(holds: Sequence[Hold]) -> None:
    for hold in holds:
        hold.end()
