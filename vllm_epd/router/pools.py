# SPDX-License-Identifier: Apache-2.0
"""How full the embedding pools of encode instances are, as far as this router's requests fill them. Pure."""

from collections import deque
from collections.abc import Hashable

from vllm_epd.types import Fingerprint, InstanceInfo

#: Names one embedding in a pool: `kept(...)` once it lies there, before that whatever its makers agree on.
Slot = Hashable

_SEEN = 32


def kept(key: str) -> Slot:
    """The slot of an embedding that lies in a pool under `key`."""
    return ("key", key)


class Ledger:
    """What requests hold of one pool: slots, each counted once however many requests hold it.

    Attributes:
        used: bytes of all slots that are held.
    """

    def __init__(self) -> None:
        self.used = 0
        self._nbytes: dict[Slot, int] = {}
        self._holders: dict[Slot, int] = {}

    def missing(self, slot: Slot, nbytes: int) -> int:
        """Bytes by which holding `slot` too would fill the pool."""
        return 0 if slot in self._nbytes else nbytes

    def take(self, slot: Slot, nbytes: int) -> None:
        """Hold a slot; who holds it first settles its size."""
        holders = self._holders.get(slot, 0)
        self._holders[slot] = holders + 1
        if not holders:
            self._nbytes[slot] = nbytes
            self.used += nbytes

    def drop(self, slot: Slot) -> None:
        """Take back one `take`."""
        holders = self._holders.pop(slot) - 1
        if holders:
            self._holders[slot] = holders
        else:
            self.used -= self._nbytes.pop(slot)


class Sizes:
    """How large the embeddings of each fingerprint have been lately."""

    def __init__(self) -> None:
        self._seen: dict[Fingerprint, deque[int]] = {}

    def note(self, group: Fingerprint, nbytes: int) -> None:
        """An embedding has been made; 0 says nothing of its size."""
        if nbytes:
            self._seen.setdefault(group, deque(maxlen=_SEEN)).append(nbytes)

    def estimate(self, info: InstanceInfo) -> int:
        """Bytes to keep free for an embedding that the instance is to make; on the large side."""
        pool = info.limits.get("pool_bytes")
        if seen := self._seen.get(info.fingerprint):
            nbytes = max(seen)
        else:
            nbytes = info.limits.get("max_item_bytes", pool or 0)
        taken = occupied(nbytes, info)
        return taken if pool is None else min(taken, pool)


def occupied(nbytes: int, info: InstanceInfo) -> int:
    """What an embedding takes up of the instance's pool, which is given out in whole pages."""
    page = info.limits.get("page_bytes", 1)
    return -(-nbytes // page) * page
