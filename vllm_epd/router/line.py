# SPDX-License-Identifier: Apache-2.0
"""Those that wait, by an order whose keys may change with time. Pure; the clock is given."""

import heapq
import math
from bisect import bisect_left, insort
from collections.abc import Iterator
from typing import Generic, TypeVar

from vllm_epd.router.ordering import Order, Ticket

T = TypeVar("T")


class Line(Generic[T]):
    """Items with their tickets; of equal keys, the item that was added first comes first."""

    def __init__(self, order: Order) -> None:
        self._order = order
        self._number = 0
        self._keys: list[tuple[float, int]] = []
        self._members: dict[int, tuple[Ticket, T, float]] = {}
        self._changes: list[tuple[float, int]] = []

    def __len__(self) -> int:
        return len(self._keys)

    def add(self, ticket: Ticket, item: T, now: float) -> int:
        """Take an item in; the number that is returned removes it again."""
        self._number += 1
        self._place(self._number, ticket, item, now)
        return self._number

    def remove(self, number: int) -> None:
        """Take an item out."""
        _, _, key = self._members.pop(number)
        del self._keys[bisect_left(self._keys, (key, number))]

    def front(self, now: float) -> T:
        """The item that is next; there is at least one."""
        self._move_on(now)
        return self._members[self._keys[0][1]][1]

    def before(self, ticket: Ticket, now: float) -> Iterator[Ticket]:
        """The tickets of those that are in front of a newcomer."""
        self._move_on(now)
        end = bisect_left(self._keys, (self._order(ticket, now).key, math.inf))
        return (self._members[number][0] for _, number in self._keys[:end])

    def tickets(self) -> Iterator[Ticket]:
        """All tickets, in no particular order."""
        return (ticket for ticket, _, _ in self._members.values())

    def _place(self, number: int, ticket: Ticket, item: T, now: float) -> None:
        rank = self._order(ticket, now)
        self._members[number] = (ticket, item, rank.key)
        insort(self._keys, (rank.key, number))
        if rank.until < math.inf:
            heapq.heappush(self._changes, (rank.until, number))

    def _move_on(self, now: float) -> None:
        """Give new places to those whose keys have changed."""
        while self._changes and self._changes[0][0] < now:
            _, number = heapq.heappop(self._changes)
            if number in self._members:
                ticket, item, _ = self._members[number]
                self.remove(number)
                self._place(number, ticket, item, now)
