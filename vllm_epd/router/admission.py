# SPDX-License-Identifier: Apache-2.0
"""Requests that wait until the instances of a stage have room for them."""

import asyncio
from collections.abc import Callable, Hashable

from vllm_epd.router.failures import QueueFullError, TooLateError
from vllm_epd.router.line import Line
from vllm_epd.router.ordering import Order, Ticket
from vllm_epd.router.rates import DrainRate, retry_after_s


class StageQueue:
    """The requests that wait for one stage, in queues of their own for those that need different instances.

    Only the request in front of its queue tries to get in, so that one that needs much is not passed over for ever.

    Attributes:
        stage: name of the stage, for messages.
    """

    def __init__(
        self,
        stage: str,
        order: Order,
        capacity: int,
        clock: Callable[[], float],
    ) -> None:
        """Make an empty queue.

        Args:
            stage: name of the stage.
            order: who comes first.
            capacity: how many may wait, of all queues together.
            clock: seconds, that of the tickets.
        """
        self.stage = stage
        self._order = order
        self._capacity = capacity
        self._clock = clock
        self._queues: dict[Hashable, Line[asyncio.Event]] = {}
        self._drain = DrainRate()

    @property
    def waiting(self) -> int:
        """Requests that wait."""
        return sum(len(queue) for queue in self._queues.values())

    def check(self, group: Hashable, ticket: Callable[[], Ticket], limit: float | None) -> None:
        """Refuse a request that would have to wait here and could not, or not to any purpose.

        Args:
            group: whose queue it would join.
            ticket: gives what is known of it, where that matters.
            limit: when it must be answered, by the clock; None if that is of no matter.

        Raises:
            QueueFullError: so many wait already that no more may.
            TooLateError: those before it are likely to take until `limit`.
        """
        if self._waits(group):
            self._check(ticket(), limit)

    def _check(self, ticket: Ticket, limit: float | None) -> None:
        if (waiting := self.waiting) >= self._capacity:
            raise QueueFullError(
                f"{waiting} requests wait for {self.stage}, and no more may; try again later",
                retry_after_s=retry_after_s(self._drain.wait_s(self._work())),
            )
        wait_s = self._drain.wait_s(self._work_before(ticket))
        if limit is not None and wait_s is not None and self._clock() + wait_s + ticket.service_s > limit:
            raise TooLateError(
                f"the time limit of the request ends before {self.stage} would begin: about {wait_s:.1f} s to wait",
                retry_after_s=retry_after_s(wait_s),
            )

    async def enter(
        self,
        group: Hashable,
        ticket: Callable[[], Ticket],
        attempt: Callable[[], bool],
        until: float,
        limit: float | None = None,
    ) -> None:
        """Return once `attempt` has succeeded, which is tried whenever `wake` says that things have changed.

        Args:
            group: requests of the same group wait for the same instances.
            ticket: gives what decides about its place in the queue, where it has to wait.
            attempt: takes what the request needs, if it is there.
            until: how long to wait, by the clock.
            limit: when the request must be answered.

        Raises:
            QueueFullError: so many wait already that no more may.
            TooLateError: `limit` is over, or is likely to be before it gets in.
            TimeoutError: `until` is over.
        """
        if not self._waits(group) and attempt():
            return
        known = ticket()
        self._check(known, limit)
        end = until if limit is None else min(until, limit)
        try:
            async with asyncio.timeout(max(0.0, end - self._clock())):
                await self._wait(group, known, attempt)
        except TimeoutError:
            if end == until:
                raise
            raise TooLateError(
                f"the time limit of the request was over before {self.stage} could begin",
                retry_after_s=retry_after_s(self._drain.wait_s(self._work())),
            ) from None

    def wake(self, group: Hashable) -> None:
        """Let the request in front try again."""
        if self._waits(group):
            self._queues[group].front(self._clock()).set()

    def wake_all(self) -> None:
        """The same for all groups."""
        for group in self._queues:
            self.wake(group)

    def _waits(self, group: Hashable) -> bool:
        """Whether anybody of a group waits; mostly nobody at all does, and to hash what names a group takes longer."""
        return bool(self._queues) and group in self._queues

    async def _wait(self, group: Hashable, ticket: Ticket, attempt: Callable[[], bool]) -> None:
        turn = asyncio.Event()
        number = self._join(group, ticket, turn)
        try:
            while True:
                await turn.wait()
                turn.clear()
                if self._queues[group].front(self._clock()) is not turn:
                    self.wake(group)  # another one has come to the front since
                elif attempt():
                    self._drain.note(self._clock(), ticket.work)
                    return
        finally:
            self._leave(group, number)

    def _join(self, group: Hashable, ticket: Ticket, turn: asyncio.Event) -> int:
        now = self._clock()
        if not self._queues:
            self._drain.begin(now)
        queue = self._queues.setdefault(group, Line(self._order))
        number = queue.add(ticket, turn, now)
        if len(queue) > 1 and queue.front(now) is turn:
            turn.set()  # there may be room for it, if not for the one that was in front
        return number

    def _leave(self, group: Hashable, number: int) -> None:
        queue = self._queues[group]
        queue.remove(number)
        if not queue:
            del self._queues[group]
        if not self._queues:
            self._drain.end()
        self.wake(group)

    def _work(self) -> float:
        """What those have to do that wait."""
        return sum(ticket.work for queue in self._queues.values() for ticket in queue.tickets())

    def _work_before(self, ticket: Ticket) -> float:
        """What those have to do that would come before a newcomer."""
        now = self._clock()
        return sum(each.work for queue in self._queues.values() for each in queue.before(ticket, now))
