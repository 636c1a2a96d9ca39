# SPDX-License-Identifier: Apache-2.0
"""The queue of requests that wait for room."""

import asyncio
import dataclasses

import pytest

from tests.fakes.instance import FINGERPRINT
from vllm_epd.errors import NoInstanceError
from vllm_epd.router.admission import AdmissionQueue

OTHER = dataclasses.replace(FINGERPRINT, weights="w1")


class Room:
    """So many places, and who took one."""

    def __init__(self, places=0):
        self.places = places
        self.taken = []
        self.queue = AdmissionQueue()

    def attempt(self, name, size=1):
        def take():
            if self.places < size:
                return False
            self.places -= size
            self.taken.append(name)
            return True

        return take

    def enter(self, name, size=1, group=FINGERPRINT, timeout_s=20.0):
        return asyncio.create_task(self.queue.enter(group, self.attempt(name, size), timeout_s))

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
    with pytest.raises(NoInstanceError, match="pools of the encode instances have been full") as caught:
        await task
    assert (caught.value.retry_after_s, room.queue.waiting) == (1, 0)


async def test_an_attempt_that_fails_fails_its_own_request():
    room = Room()

    def fail():
        if room.places:
            raise NoInstanceError("no encoder")
        return False

    failing = asyncio.create_task(room.queue.enter(FINGERPRINT, fail, 20.0))
    await asyncio.sleep(0)
    task = room.enter("a")
    await waiting(room, 2)
    await room.free(1)
    with pytest.raises(NoInstanceError, match="no encoder"):
        await failing
    await task
