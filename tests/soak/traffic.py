# SPDX-License-Identifier: Apache-2.0
"""Transfers without end, and a book of what became of each."""

from collections import Counter, defaultdict
from dataclasses import dataclass, field

from tests.soak.fleet import GRANT_S
from vllm_epd.transfer import wire

AT_ONCE = 6
BATCH = 16
LEASE_S = 20.0
SHORT_LEASE_S = 0.02


@dataclass
class Item:
    """Something offered, or said to be."""

    key: str
    nbytes: int
    producer: object
    sound: bool
    """Offered by a process that is not killed, under a lease that does not run out."""

    @property
    def handle(self):
        return self.producer.handle(self.key, self.nbytes)


@dataclass
class Pull:
    item: Item
    dropped: bool


@dataclass
class Book:
    """What became of the pulls of one consumer process."""

    open: dict = field(default_factory=dict)
    landed: list = field(default_factory=list)


class Traffic:
    """Keeps every consumer busy; `outcomes` counts how pulls have ended."""

    def __init__(self, fleet, chance):
        self._fleet = fleet
        self._chance = chance
        self._names = 0
        self._stock = defaultdict(list)
        self._delivered = []
        self.books = defaultdict(Book)
        self.outcomes = Counter()
        self.wrong = []
        self.broken_promises = []

    @property
    def ended(self):
        return sum(self.outcomes.values())

    def step(self):
        """Start, settle and check what there is to."""
        for slot in self._fleet.consumers:
            if slot.is_ready:
                while len(self.books[slot.worker].open) < AT_ONCE:
                    self._start(slot.worker)
                self.settle(slot.worker)

    def settle(self, consumer):
        """Take in reports, and check and give back what has landed."""
        book = self.books[consumer]
        while consumer.orders.poll(0):
            self._report(book, consumer.report())
        landed, book.landed = book.landed, []
        self.wrong += consumer.do("check", [(number, pull.item.key, pull.item.nbytes) for number, pull in landed])
        for number, pull in landed:
            consumer.tell(wire.Drop(number, 1))
            self._give_back(consumer, pull.item)

    def bury(self, worker):
        """A process is dead: nothing is heard of what it was doing."""
        book = self.books.pop(worker, Book())
        self.outcomes["died with its consumer"] += len(book.open) + len(book.landed)
        for pull in [pull for book in self.books.values() for pull in book.open.values()]:
            pull.item.sound &= pull.item.producer is not worker
        if self._chance.random() < 0.7:
            self._stock.pop(worker, None)

    def _start(self, consumer):
        self._names += 1
        item = self._next_item()
        pull = Pull(item, dropped=self._chance.random() < 0.05)
        self.books[consumer].open[self._names] = pull
        consumer.tell(wire.Pull(self._names, item.handle))
        if pull.dropped:
            consumer.tell(wire.Drop(self._names, 0))

    def _next_item(self):
        luck = self._chance.random()
        if luck < 0.05 and self._delivered:
            return self._chance.choice(self._delivered[-200:])
        if luck < 0.08:
            return Item(f"none-{self._names}", 5000, self._chance.choice(self._fleet.producers).worker, sound=False)
        buried = [worker for worker in self._stock if self._stock[worker]]
        ready = [slot for slot in self._fleet.producers if slot.is_ready]
        worker = self._chance.choice([*(slot.worker for slot in ready), *buried])
        if not self._stock[worker]:
            self._offer(next(slot for slot in ready if slot.worker is worker))
        return self._stock[worker].pop()

    def _offer(self, slot):
        wanted = []
        for _ in range(BATCH):
            self._names += 1
            lease_s = SHORT_LEASE_S if self._chance.random() < 0.05 else LEASE_S
            wanted.append((f"item-{self._names}", int(2048 * 150 ** self._chance.random()), lease_s))
        offered = slot.worker.do("offer", wanted)
        assert offered, "a producer has no room although its consumers are at work"
        self._stock[slot.worker] += [
            Item(key, nbytes, slot.worker, sound=not slot.mortal and lease_s == LEASE_S)
            for key, nbytes, lease_s in offered
        ]

    def _report(self, book, report):
        pull = book.open.pop(report.landing)
        if pull.dropped:
            self.outcomes["dropped"] += 1
        elif isinstance(report, wire.Pulled):
            self.outcomes["delivered"] += 1
            book.landed.append((report.landing, pull))
        else:
            self.outcomes["failed"] += 1
            if pull.item.sound:
                self.broken_promises.append((pull.item.key, report.reason))

    def _give_back(self, consumer, item):
        """Acknowledge, mostly once."""
        for _ in range(self._chance.choices([0, 1, 2], [5, 90, 5])[0]):
            consumer.tell(wire.Release(item.handle))
        # Its lease is over, so it may be evicted.
        item.sound = False
        self._delivered.append(item)


assert LEASE_S > GRANT_S
