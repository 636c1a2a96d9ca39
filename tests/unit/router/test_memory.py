# SPDX-License-Identifier: Apache-2.0
"""A request lives as long as its answer takes; its media does not."""

import asyncio
import tracemalloc

import pytest

from tests.unit.router.conftest import image

BIG = 2 * 2**20
NOTHING_KEPT = {"recovery_bytes": 0}
TOPOLOGIES = [("EPD",), ("E", "PD"), ("E", "P", "D"), ("EP", "D")]


def _held_by_the_router():
    """Bytes that code of the router or its server has allocated and somebody still holds."""
    sources = [tracemalloc.Filter(True, name) for name in ("*/vllm_epd/router/*", "*/aiohttp/web_request.py")]
    taken = tracemalloc.take_snapshot().filter_traces(sources)
    return sum(each.size for each in taken.traces)


@pytest.mark.parametrize("letters", TOPOLOGIES, ids="+".join)
async def test_media_is_let_go_of_once_the_answer_has_begun(cluster_with, letters):
    async with cluster_with(**NOTHING_KEPT) as cluster:
        await _begins_without_media(cluster, letters)


async def _begins_without_media(cluster, letters):
    last = (await cluster.up(*letters))[-1]
    last.does.words = ["one", "two"]
    last.does.gate = asyncio.Event()
    tracemalloc.start()
    try:
        content = [image("a" * BIG)]
        body = {"model": "tiny", "stream": True, "messages": [{"role": "user", "content": content}]}
        async with cluster.session.post(cluster.url + "/v1/chat/completions", json=body) as response:
            await response.content.readuntil(b"\n\n")
            assert _held_by_the_router() < BIG // 8
            last.does.gate.set()
            await response.read()
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    ("letters", "busy"), [(("E", "P", "D"), 1), (("E", "P", "D"), 2), (("EP", "D"), 1), (("E", "PD"), 1)]
)
async def test_media_is_let_go_of_once_it_is_encoded(cluster_with, letters, busy):
    async with cluster_with(**NOTHING_KEPT) as cluster:
        await _goes_on_without_media(cluster, letters, busy)


async def _goes_on_without_media(cluster, letters, busy):
    last = (await cluster.up(*letters))[busy]
    last.does.hold = asyncio.Event()
    tracemalloc.start()
    try:
        asked = asyncio.create_task(cluster.chat([image("a" * BIG)]))
        await last.arrived.wait()
        assert _held_by_the_router() < BIG // 8
        last.does.hold.set()
        assert (await asked).status == 200
    finally:
        tracemalloc.stop()
