# SPDX-License-Identifier: Apache-2.0
"""Calls expire when their time is over, each once and no other one."""

import asyncio

from vllm_epd.router.alarms import Alarms


class Call:
    def __init__(self):
        self.expired = 0

    def expire(self):
        self.expired += 1


async def test_each_call_expires_in_its_own_time_whatever_began_before_it():
    alarms = Alarms()
    long, short, over = Call(), Call(), Call()
    alarms.begin(long, 0.15)
    alarms.begin(over, 0.02)
    alarms.begin(short, 0.05)
    alarms.end(over)
    await asyncio.sleep(0.1)
    assert (long.expired, short.expired, over.expired) == (0, 1, 0)
    alarms.end(short)
    await asyncio.sleep(0.1)
    assert (long.expired, short.expired, over.expired) == (1, 1, 0)


async def test_a_connection_that_begins_another_call_has_its_time_anew():
    alarms = Alarms()
    call = Call()
    alarms.begin(call, 0.05)
    alarms.end(call)
    alarms.begin(call, 0.2)
    await asyncio.sleep(0.1)
    assert call.expired == 0


async def test_nothing_expires_after_the_end():
    alarms = Alarms()
    call = Call()
    alarms.begin(call, 0.02)
    alarms.close()
    await asyncio.sleep(0.05)
    assert call.expired == 0
