# SPDX-License-Identifier: Apache-2.0
"""From whom embeddings may be taken, and how long one may wait to learn of a change."""

import asyncio
import time

import pytest

from vllm_epd.router.instances import InstanceRegistry
from vllm_epd.router.peers import PeerTable

ONE = {"epoch": "e1", "agents": ("tcp://10.0.0.1:1", "tcp://10.0.0.1:2")}
TWO = {"epoch": "e2", "agents": ("tcp://10.0.0.2:1",)}


async def _peers(cluster, after=None, wait_s=None, **kwargs):
    asked = {"after": after, "wait_s": wait_s}
    params = {name: value for name, value in asked.items() if value is not None}
    answer = await cluster.call("GET", "/epd/peers", params=params, **kwargs)
    assert answer.status == 200
    return answer.json


async def _poll(cluster, wait_s=20):
    """A poll that waits."""
    version = (await _peers(cluster))["version"]
    polled = asyncio.create_task(_peers(cluster, version, wait_s))
    await asyncio.sleep(0.05)
    assert not polled.done()
    return polled


async def test_all_that_have_agents_are_listed_by_epoch(cluster):
    assert (await _peers(cluster))["peers"] == {}
    await cluster.add("E", **ONE)
    await cluster.add("E", **TWO)
    await cluster.add("PD", epoch="e3")
    assert (await _peers(cluster))["peers"] == {"e1": list(ONE["agents"]), "e2": list(TWO["agents"])}


async def test_an_instance_that_is_left_alone_for_a_while_is_still_a_peer(cluster):
    fake = await cluster.add("E", **ONE)
    cluster.registry.suspend(cluster.instance(fake))
    assert list((await _peers(cluster))["peers"]) == ["e1"]


async def test_another_version_is_answered_at_once(cluster):
    await cluster.add("E", **ONE)
    for after in (None, "", "of an earlier router"):
        assert list((await _peers(cluster, after, 20))["peers"]) == ["e1"]


async def test_the_same_version_is_answered_when_the_time_is_over(cluster):
    table = await _peers(cluster)
    start = time.monotonic()
    assert await _peers(cluster, table["version"], 0.3) == table
    assert 0.3 <= time.monotonic() - start < 5
    assert await _peers(cluster, table["version"]) == table


async def test_who_waits_learns_of_an_instance_that_comes(cluster):
    polled = await _poll(cluster)
    await cluster.add("E", **ONE)
    assert list((await polled)["peers"]) == ["e1"]


async def test_who_waits_learns_of_a_restart(cluster):
    fake = await cluster.add("E", **ONE)
    polled = await _poll(cluster)
    fake.restart("e9")
    await cluster.register(fake)
    assert list((await polled)["peers"]) == ["e9"]


async def test_who_waits_learns_of_an_instance_that_leaves(cluster):
    fake = await cluster.add("E", **ONE)
    polled = await _poll(cluster)
    await cluster.remove(fake)
    assert (await polled)["peers"] == {}


async def test_who_waits_learns_of_an_instance_that_falls_silent(cluster, clock):
    await cluster.add("E", **ONE)
    polled = await _poll(cluster)
    clock.now += 7
    assert (await asyncio.wait_for(polled, 5))["peers"] == {}


async def test_a_sign_of_life_is_no_change(cluster):
    fake = await cluster.add("E", **ONE)
    polled = await _poll(cluster)
    await cluster.register(fake)
    await cluster.call("PUT", f"/epd/instances/{fake.instance_id}", {"epoch": "e1"})
    await asyncio.sleep(0.05)
    assert not polled.done()
    polled.cancel()


async def test_nobody_waits_for_a_router_that_leaves(cluster):
    polled = await _poll(cluster)
    cluster.parts.peers.close()
    assert (await asyncio.wait_for(polled, 5))["peers"] == {}
    version = cluster.parts.peers.now()["version"]
    await asyncio.wait_for(_peers(cluster, version, 20), 5)


async def test_polls_are_no_load(cluster):
    polled = await _poll(cluster)
    assert await cluster.metric("in_flight") == 1.0  # the request that asks
    polled.cancel()


@pytest.mark.parametrize("wait_s", ["", "x", "-1", "nan", "inf"])
async def test_a_bad_time_is_refused(cluster, wait_s):
    answer = await cluster.call("GET", "/epd/peers", params={"wait_s": wait_s})
    assert (answer.status, answer.error["param"]) == (400, "wait_s")


async def test_nobody_waits_longer_than_half_a_minute(cluster, monkeypatch):
    monkeypatch.setattr("vllm_epd.router.registry_routes._LONGEST_POLL_S", 0.1)
    table = await _peers(cluster)
    assert await asyncio.wait_for(_peers(cluster, table["version"], 1e9), 5) == table


async def test_the_token_is_needed(cluster_with):
    async with cluster_with(token="secret") as cluster:
        answer = await cluster.call("GET", "/epd/peers")
        assert (answer.status, answer.error["type"]) == (401, "AuthenticationError")
        assert (await _peers(cluster, headers={"Authorization": "Bearer secret"}))["peers"] == {}


def test_versions_of_two_routers_are_never_the_same(clock):
    tables = [PeerTable(InstanceRegistry(clock, 6.0)) for _ in range(2)]
    assert tables[0].now()["version"] != tables[1].now()["version"]
