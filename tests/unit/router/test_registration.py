# SPDX-License-Identifier: Apache-2.0
"""The registration API over HTTP: come, stay, go, and who may."""

import pytest

from tests.fakes.instance import FakeInstance
from tests.unit.router.conftest import busy


@pytest.fixture
async def fake():
    return FakeInstance("PD")


async def _listed(cluster, **kwargs):
    answer = await cluster.call("GET", "/epd/instances", **kwargs)
    assert answer.status == 200
    return answer.json["instances"]


async def test_life_of_an_instance(cluster, clock):
    fake = await cluster.add("EP", limits={"max_model_len": 64})
    described = {**fake.info().to_mapping(), "age_s": 0.0, "outstanding": 0, "suspended": False}
    assert await _listed(cluster) == [described]
    clock.now += 1.5
    assert (await _listed(cluster))[0]["age_s"] == 1.5
    beat = {"epoch": "1", "roles": "encode", "models": ["other"]}
    assert (await cluster.call("PUT", f"/epd/instances/{fake.instance_id}", beat)).status == 200
    assert await _listed(cluster) == [{**described, "roles": "encode", "models": ["other"]}]
    answer = await cluster.call("DELETE", f"/epd/instances/{fake.instance_id}?epoch=1")
    assert (answer.status, answer.raw) == (204, b"")
    assert await _listed(cluster) == []


async def test_an_instance_is_told_how_often_to_report(cluster_with, fake):
    async with cluster_with(ttl_s=9.0, heartbeat_s=3.0) as cluster:
        answer = await cluster.call("POST", "/epd/instances", fake.info().to_mapping())
        assert answer.json == {"heartbeat_s": 3.0, "ttl_s": 9.0}


async def test_registering_again_changes_nothing(cluster):
    fake = await cluster.add("EPD")
    with busy(cluster.instance(fake)):
        await cluster.call("POST", "/epd/instances", fake.info().to_mapping())
        (listed,) = await _listed(cluster)
    assert listed["outstanding"] == 1


async def test_a_restarted_instance_replaces_itself(cluster):
    fake = await cluster.add("EPD")
    with busy(cluster.instance(fake)):
        await cluster.call("POST", "/epd/instances", fake.info(epoch="2").to_mapping())
        (listed,) = await _listed(cluster)
    assert (listed["epoch"], listed["outstanding"]) == ("2", 0)
    path = f"/epd/instances/{fake.instance_id}"
    assert (await cluster.call("PUT", path, {"epoch": "1"})).status == 404
    assert (await cluster.call("DELETE", path + "?epoch=1")).status == 404
    assert (await cluster.call("PUT", path, {"epoch": "2"})).status == 200


async def test_an_instance_that_falls_silent_is_dropped(cluster, clock):
    fake = await cluster.add("EPD")
    clock.now += 6.0
    assert (await cluster.chat("x")).status == 200
    clock.now += 0.1
    assert (await cluster.chat("x")).status == 503
    assert await _listed(cluster) == []
    answer = await cluster.call("PUT", f"/epd/instances/{fake.instance_id}", {"epoch": "1"})
    assert answer.status == 404
    assert answer.error["type"] == "NotFoundError"


async def test_a_role_that_changes_changes_the_way(cluster):
    encode, both = await cluster.up("E", "PD")
    await cluster.call("PUT", f"/epd/instances/{both.instance_id}", {"epoch": "1", "roles": "prefill"})
    answer = await cluster.chat("x")
    assert "no decode instance" in answer.error["message"]
    assert both.seen == []


@pytest.mark.parametrize(
    "change",
    [
        {"epoch": ""},
        {"instance_id": None},
        {"roles": "encode+encode"},
        {"roles": "cook"},
        {"models": 3},
        {"fingerprint": {"config": "x"}},
        {"url": "localhost:1"},
        {"url": "ftp://host:1"},
        {"url": "http://[bad"},
        {"limits": {"max_model_len": "many"}},
        {"unknown": 1},
    ],
    ids=str,
)
async def test_a_bad_description_is_refused(cluster, fake, change):
    answer = await cluster.call("POST", "/epd/instances", {**fake.info().to_mapping(), **change})
    assert answer.status == 400
    assert answer.error["type"] == "BadRequestError"
    assert await _listed(cluster) == []


@pytest.mark.parametrize(
    "beat",
    [
        {},
        {"epoch": 1},
        {"epoch": "1", "roles": "cook"},
        {"epoch": "1", "roles": 1},
        {"epoch": "1", "models": "a"},
        {"epoch": "1", "models": [1]},
        {"epoch": "1", "load": 1},
    ],
    ids=str,
)
async def test_a_bad_heartbeat_is_refused(cluster, beat):
    fake = await cluster.add("EPD")
    answer = await cluster.call("PUT", f"/epd/instances/{fake.instance_id}", beat)
    assert answer.status == 400
    (listed,) = await _listed(cluster)
    assert (listed["roles"], listed["models"]) == ("encode+prefill+decode", ["tiny"])


async def test_leaving_without_an_epoch_is_refused(cluster):
    fake = await cluster.add("EPD")
    assert (await cluster.call("DELETE", f"/epd/instances/{fake.instance_id}")).status == 400
    assert len(await _listed(cluster)) == 1


@pytest.mark.parametrize("header", [None, "secret", "Bearer other", "Bearer sécret", "Basic secret"])
async def test_without_the_token_nobody_registers(cluster_with, fake, header):
    async with cluster_with(token="secret") as cluster:
        headers = {} if header is None else {"Authorization": header}
        path = f"/epd/instances/{fake.instance_id}"
        calls = [
            ("POST", "/epd/instances", fake.info().to_mapping()),
            ("GET", "/epd/instances", None),
            ("PUT", path, {"epoch": "1"}),
            ("DELETE", path + "?epoch=1", None),
        ]
        for method, where, body in calls:
            answer = await cluster.call(method, where, body, headers=headers)
            assert (answer.status, answer.error["type"]) == (401, "AuthenticationError")
        assert (await cluster.call("GET", "/health", headers=headers)).status == 200


async def test_with_the_token_an_instance_registers(cluster_with, fake):
    async with cluster_with(token="secret") as cluster:
        bearer = {"Authorization": "Bearer secret"}
        assert (await cluster.call("POST", "/epd/instances", fake.info().to_mapping(), headers=bearer)).status == 200
        assert len(await _listed(cluster, headers=bearer)) == 1
