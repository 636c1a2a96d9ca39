# SPDX-License-Identifier: Apache-2.0
"""The queue of requests that wait for room."""

import asyncio
import dataclasses
import random

import pytest

from tests.fakes.instance import FINGERPRINT
from vllm_epd.errors import NoInstanceError
from vllm_epd.router.admission import StageQueue
from vllm_epd.router.failures import QueueFullError, TooLateError
from vllm_epd.router.ordering import Ticket, fcfs, sjf, slack

OTHER = dataclasses.replace(FINGERPRINT, weights="w1")


class Room:
    """So many places, and who took one."""

    def __init__(self, places=0, order=fcfs, capacity=100):
        self.places = places
        self.taken = []
        self.now = 0.0
        self.queue = StageQueue("prefill", order, capacity, lambda: self.now)

    def attempt(self, name, size=1):
        def take():
            if self.places < size:
                return False
            self.places -= size
            self.taken.append(name)
            return True

        return take

    def enter(self, name, size=1, group=FINGERPRINT, timeout_s=20.0, limit=None, work=1.0):
        ticket, until = Ticket(self.now, work), self.now + timeout_s
        return asyncio.create_task(self.queue.enter(group, lambda: ticket, self.attempt(name, size), until, limit))

    async def free(self, places):
        self.places += places
        self.queue.wake(FINGERPRINT)
        await asyncio.sleep(0.01)


async def waiting(room, count):
    await asyncio.sleep(0)
    assert room.queue.waiting == count


async def test_who_finds_room_does_not_wait():
    room = Room(1)
    await room.enter("a")
    assert (room.taken, room.queue.waiting) == (["a"], 0)


async def test_first_come_first_served():
    room = Room()
    tasks = [room.enter(name) for name in "abcd"]
    await waiting(room, 4)
    await room.free(1)
    assert room.taken == ["a"]
    await room.free(2)
    assert room.taken == ["a", "b", "c"]
    await room.free(1)
    await asyncio.gather(*tasks)
    assert room.queue.waiting == 0


async def test_nobody_gets_past_who_needs_more():
    room = Room(1)
    tasks = [room.enter("large", size=3), room.enter("small")]
    await waiting(room, 2)
    await room.free(1)
    assert room.taken == []
    await room.free(2)
    await asyncio.gather(*tasks)
    assert room.taken == ["large", "small"]


async def test_other_fingerprints_have_a_queue_of_their_own():
    room = Room(1)
    task = room.enter("large", size=2)
    await waiting(room, 1)
    await room.enter("other", group=OTHER)
    room.places = 2
    room.queue.wake(OTHER)
    await asyncio.sleep(0.01)
    assert not task.done()
    room.queue.wake_all()
    await task


async def test_who_leaves_makes_way_for_the_next():
    room = Room(1)
    large, small = room.enter("large", size=2), room.enter("small")
    await waiting(room, 2)
    large.cancel()
    await small
    assert (room.taken, room.queue.waiting) == (["small"], 0)


async def test_who_leaves_when_it_is_its_turn_passes_it_on():
    room = Room()
    first, second = room.enter("first"), room.enter("second")
    await waiting(room, 2)
    room.places = 1
    room.queue.wake(FINGERPRINT)
    first.cancel()
    await second
    assert room.taken == ["second"]


async def test_who_waits_too_long_is_told_so():
    room = Room()
    task = room.enter("a", timeout_s=0.05)
    with pytest.raises(TimeoutError):
        await task
    assert room.queue.waiting == 0


async def test_an_attempt_that_fails_fails_its_own_request():
    room = Room()

    def fail():
        if room.places:
            raise NoInstanceError("no encoder")
        return False

    failing = asyncio.create_task(room.queue.enter(FINGERPRINT, lambda: Ticket(0.0), fail, 20.0))
    await asyncio.sleep(0)
    task = room.enter("a")
    await waiting(room, 2)
    await room.free(1)
    with pytest.raises(NoInstanceError, match="no encoder"):
        await failing
    await task


async def test_the_order_decides_who_is_next():
    room = Room(order=sjf)
    tasks = [room.enter(str(work), work=work) for work in (30, 10, 20)]
    await waiting(room, 3)
    for _ in tasks:
        await room.free(1)
    assert room.taken == ["10", "20", "30"]
    await asyncio.gather(*tasks)


async def test_who_comes_to_the_front_tries_at_once():
    room = Room(1, order=sjf)
    large = room.enter("large", size=2, work=30)
    await waiting(room, 1)
    await asyncio.wait_for(room.enter("small", work=10), 5)
    assert room.taken == ["small"]
    await room.free(2)
    await large


async def test_more_than_may_wait_are_refused_with_the_time_that_the_others_take():
    room = Room(capacity=2)
    tasks = [room.enter("a"), room.enter("b"), room.enter("c", timeout_s=0.01)]
    with pytest.raises(QueueFullError, match="2 requests wait for prefill, and no more may") as caught:
        await tasks.pop()
    assert (caught.value.status, caught.value.retry_after_s) == (429, 1)
    room.now = 7.0
    await room.free(1)  # one in seven seconds
    tasks += [room.enter("c")]
    await waiting(room, 2)
    with pytest.raises(QueueFullError) as caught:
        await room.enter("d")
    assert caught.value.retry_after_s == 14
    await room.free(2)
    await asyncio.gather(*tasks)


async def test_who_cannot_be_in_time_is_refused_before_it_waits():
    room = Room()
    tasks = [room.enter(name) for name in "abcd"]
    await waiting(room, 4)
    room.now = 5.0
    await room.free(1)  # one in five seconds, so the other three take fifteen
    with pytest.raises(TooLateError, match="about 15.0 s to wait") as caught:
        await room.enter("late", limit=19.0)
    assert (caught.value.status, caught.value.retry_after_s) == (503, 15)
    with pytest.raises(TooLateError):
        room.queue.check(FINGERPRINT, lambda: Ticket(room.now, service_s=2.0), limit=21.0)
    room.queue.check(FINGERPRINT, lambda: Ticket(room.now), limit=21.0)
    room.queue.check(OTHER, lambda: Ticket(room.now), limit=5.0)  # nobody waits for these
    await room.free(3)
    await asyncio.gather(*tasks)


async def test_only_those_in_front_of_a_request_make_it_late():
    room = Room(order=sjf)
    tasks = [room.enter("short", work=10), room.enter("long", work=1000)]
    await waiting(room, 2)
    room.now = 10.0
    await room.free(1)  # ten tokens in ten seconds
    room.queue.check(FINGERPRINT, lambda: Ticket(0.0, work=500), limit=11.0)
    with pytest.raises(TooLateError):
        room.queue.check(FINGERPRINT, lambda: Ticket(0.0, work=2000), limit=1000.0)
    await room.free(1)
    await asyncio.gather(*tasks)


async def test_who_is_too_late_while_it_waits_leaves():
    room = Room()
    task = room.enter("a", limit=0.05)
    with pytest.raises(TooLateError, match="was over before prefill could begin"):
        await task
    assert room.queue.waiting == 0


async def test_everyone_gets_in_once_however_many_leave():
    room, chance = Room(order=sjf, capacity=1000), random.Random(3)
    tasks = [room.enter(number, work=chance.random() * 100) for number in range(300)]
    left = set()
    for _ in range(150):
        await room.free(1)
        gone = chance.randrange(300)
        if tasks[gone].cancel():
            left.add(gone)
    await room.free(300)
    await asyncio.gather(*tasks, return_exceptions=True)
    assert sorted(room.taken) == sorted(set(range(300)) - left)
    assert room.queue.waiting == 0


async def test_the_front_is_who_is_most_urgent_now():
    room = Room(order=slack)
    late = asyncio.create_task(room.queue.enter(FINGERPRINT, lambda: Ticket(0.0, due=3.0), room.attempt("late"), 99.0))
    await waiting(room, 1)
    other = asyncio.create_task(
        room.queue.enter(FINGERPRINT, lambda: Ticket(0.0, due=9.0), room.attempt("in time"), 99.0)
    )
    await waiting(room, 2)
    room.queue.wake(FINGERPRINT)
    room.now = 5.0  # between the call to the one in front and its answer
    await room.free(1)
    assert room.taken == ["in time"]
    await room.free(1)
    await asyncio.gather(late, other)
