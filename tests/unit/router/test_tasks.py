# SPDX-License-Identifier: Apache-2.0
"""Parts of a request end together."""

import asyncio

import pytest

from vllm_epd.router.tasks import all_or_cancel


async def test_results_come_in_order():
    async def after(delay):
        await asyncio.sleep(delay)
        return delay

    assert await all_or_cancel([after(0.02), after(0.0), after(0.01)]) == [0.02, 0.0, 0.01]
    assert await all_or_cancel([]) == []


@pytest.mark.parametrize("how", ["failure", "cancelled"])
async def test_nothing_is_left_running(how):
    ended = []

    async def linger(name):
        try:
            await asyncio.sleep(10)
        finally:
            await asyncio.sleep(0)
            ended.append(name)

    async def fail():
        await asyncio.sleep(0.01)
        raise ValueError("first")

    parts = [linger("a"), *([fail()] if how == "failure" else []), linger("b")]
    whole = asyncio.create_task(all_or_cancel(parts))
    await asyncio.sleep(0)
    if how == "cancelled":
        await asyncio.sleep(0.01)
        whole.cancel()
    with pytest.raises(ValueError if how == "failure" else asyncio.CancelledError):
        await whole
    assert ended == ["a", "b"]
