# SPDX-License-Identifier: Apache-2.0
"""Leases are given back in the background, and at the latest when the router leaves."""

import asyncio
import json

from tests.unit.router.test_pools import ENCODER
from vllm_epd.errors import UpstreamError
from vllm_epd.router.config import RouterConfig
from vllm_epd.router.embeddings import Lease
from vllm_epd.router.instances import Instance
from vllm_epd.router.leases import LeaseClient

LEASES = [Lease("l1", "k1", rank=3), Lease("l2", "k2", rank=3)]


class SlowClient:
    """Answers when told, or fails."""

    def __init__(self, failure=None):
        self.go = asyncio.Event()
        self.asked = []
        self._failure = failure

    async def ask(self, stage, instance, path, body, headers, *, timeout_s, judged):
        self.asked.append((path, json.loads(body), timeout_s))
        await self.go.wait()
        if self._failure:
            raise self._failure
        return b"{}"


async def released(failure=None):
    client = SlowClient(failure)
    leases, ended = LeaseClient(client, RouterConfig(token=None)), []
    leases.release(Instance(ENCODER, 0.0), LEASES, lambda: ended.append(True))
    await asyncio.sleep(0)
    return client, leases, ended


async def test_the_instance_is_told_all_of_one_rank_at_once():
    client, leases, ended = await released()
    assert client.asked == [("/epd/leases/release", {"leases": ["l1", "l2"], "rank": 3}, 5.0)]
    assert ended == []
    client.go.set()
    await leases.close()
    assert ended == [True]


async def test_a_router_that_leaves_gives_back_first():
    client, leases, ended = await released()
    closing = asyncio.create_task(leases.close())
    await asyncio.sleep(0.02)
    assert not closing.done()
    client.go.set()
    await closing
    assert ended == [True]


async def test_an_instance_that_cannot_be_told_ends_it_too():
    client, leases, ended = await released(UpstreamError("gone", stage="encode"))
    client.go.set()
    await leases.close()
    assert ended == [True]


async def test_after_that_nobody_is_told():
    client, leases, ended = await released()
    client.go.set()
    await leases.close()
    leases.release(Instance(ENCODER, 0.0), LEASES, lambda: ended.append(True))
    await asyncio.sleep(0)
    assert (len(client.asked), ended) == (1, [True, True])
