# SPDX-License-Identifier: Apache-2.0
"""Waiting for what another thread changes."""

import asyncio
import threading

from vllm_epd.transfer.news import News


async def test_who_waits_looks_again_when_another_thread_tells():
    news, seen = News(), []
    waiters = [asyncio.create_task(news.until(lambda number=number: len(seen) > number, 10)) for number in range(3)]
    await asyncio.sleep(0)

    def change():
        for _ in range(3):
            seen.append(None)
            news.tell()

    threading.Thread(target=change).start()
    assert await asyncio.gather(*waiters) == [True] * 3


async def test_nobody_misses_a_change_however_it_falls():
    """Each turn of one thread is told while the other looks."""
    news, turn = News(), [0]

    def count():
        for _ in range(2000):
            turn[0] += 1
            news.tell()

    thread = threading.Thread(target=count)
    thread.start()
    assert await news.until(lambda: turn[0] == 2000, 20)
    thread.join()


async def test_a_wait_ends_without_news():
    looks = []
    assert not await News().until(lambda: bool(looks.append(None)), 0.01)
    assert len(looks) == 2


async def test_a_condition_that_holds_needs_no_news():
    assert await News().until(lambda: True, 0)


def test_a_closed_loop_is_no_matter():
    news = News()

    async def leave():
        asyncio.create_task(news.until(lambda: False))
        await asyncio.sleep(0)

    loop = asyncio.new_event_loop()
    loop.run_until_complete(leave())
    loop.close()
    news.tell()
