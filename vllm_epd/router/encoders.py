# SPDX-License-Identifier: Apache-2.0
"""What all requests of a router share about encoding, and one media part on its way through it. No I/O."""

import asyncio
from collections.abc import Sequence

from msgspec import Struct, field

from vllm_epd.router.admission import StageQueue
from vllm_epd.router.holds import Hold
from vllm_epd.router.instances import Instance
from vllm_epd.router.leases import LeaseClient
from vllm_epd.router.media import Shard
from vllm_epd.router.placement import Choose, Need, Place, place
from vllm_epd.router.pools import Sizes, kept, occupied
from vllm_epd.router.prefixes import Name
from vllm_epd.router.reuse import Directory


class Part(Struct, eq=False):
    """A distinct media part of one request until its embedding is there.

    Attributes:
        places: where it stands among the media parts of the request.
        digest: names its embedding; None if it must be encoded for each request.
        hold: its room, once admitted.
        leads: it is encoded for this request, and others with the same digest wait for that.
        cost: what encoding it is estimated at, in tokens.
        names: by what instances that have had it are known; empty if nobody asks.
        shard: which part of the item this is to be; None for all of it.
        worker: the instance that encodes it, and counts as busy with it.
        closed: set when it is over, however it ended.
    """

    places: list[int]
    digest: str | None
    cost: float = 0.0
    names: Sequence[Name] = ()
    shard: Shard | None = None
    hold: Hold | None = None
    leads: bool = False
    worker: Instance | None = None
    closed: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def room(self) -> Hold:
        """Its room; only between admission and end."""
        if self.hold is None:
            raise RuntimeError("the part has no room in a pool")
        return self.hold

    def work_at(self, instance: Instance, nbytes: int) -> None:
        """Have it encoded by `instance`, and move its room there."""
        self.rest()
        self.worker = instance
        instance.begin(self.cost)
        if self.room.instance is not instance:
            self.room.move(instance, self.room.slot, nbytes)

    def rest(self) -> None:
        """Nobody encodes it any more."""
        if self.worker is not None:
            self.worker.end(self.cost)
            self.worker = None

    @property
    def label(self) -> str:
        """Tells its calls from those for other parts of the request."""
        return f"e{self.places[0]}" if self.shard is None else f"e{self.places[0]}.{self.shard.index}"


class Encoders:
    """Which embeddings there are, which are being made, and the room for them.

    A request is admitted with all its parts or waits with none: it would otherwise keep room that another one needs
    to give back what it itself waits for. Each part that is admitted has its share of a pool, whether it is encoded,
    read once more, or waits for the same part of another request; so an admitted request waits for no room again.

    Attributes:
        directory: the embeddings that were made.
        sizes: how large they were.
        queue: the requests that wait for room.
        leases: the way to the instances that hold them.
        leaders: the parts that are being encoded, by digest.
    """

    def __init__(self, leases: LeaseClient, reuse_entries: int, queue: StageQueue) -> None:
        self.directory = Directory(reuse_entries)
        self.sizes = Sizes()
        self.queue = queue
        self.leases = leases
        self.leaders: dict[str, Part] = {}

    def admit(
        self, parts: Sequence[Part], present: Sequence[Instance], encoders: Sequence[Instance], choose: Choose
    ) -> bool:
        """Give every part its room, or none of them any; `present` are those that may hold embeddings."""
        needs = [self._need(part, present) for part in parts]
        placed = place(needs, encoders, choose, lambda instance: self.sizes.estimate(instance.info))
        if placed is None:
            return False
        for part, need, found in zip(parts, needs, placed, strict=True):
            part.hold = Hold(found.instance, found.slot, found.nbytes, self.queue.wake)
            if found is not need.there:
                part.work_at(found.instance, found.nbytes)
                self.lead(part)
        return True

    def lead(self, part: Part) -> None:
        """Have others with the same digest wait for this part."""
        part.leads = True
        if part.digest is not None:
            self.leaders[part.digest] = part

    def close(self, part: Part) -> None:
        """Let go of what a part still has, and of those that wait for it."""
        part.rest()
        if part.hold is not None:
            part.hold.end()
        if part.digest is not None and self.leaders.get(part.digest) is part:
            del self.leaders[part.digest]
        part.closed.set()

    def _need(self, part: Part, present: Sequence[Instance]) -> Need:
        if part.digest is None:
            return Need(slot=part, cost=part.cost, names=part.names)
        there = None
        if known := self.directory.find(part.digest, present.__contains__):
            info = known.holder.info
            nbytes = occupied(known.lease.nbytes, info) or self.sizes.estimate(info)
            there = Place(known.holder, kept(known.lease.key), nbytes)
        elif leader := self.leaders.get(part.digest):
            there = Place(leader.room.instance, leader.room.slot, leader.room.nbytes)
        return Need(("encode", part.digest), there, part.cost, part.names)
