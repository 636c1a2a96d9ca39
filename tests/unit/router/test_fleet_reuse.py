# SPDX-License-Identifier: Apache-2.0
"""What one instance has encoded is not encoded again, for whichever request."""

import asyncio
import dataclasses

import pytest

from tests.fakes.instance import FINGERPRINT, item_hash
from tests.unit.router.conftest import busy, image, soon, text
from vllm_epd.router.config import Timeouts

CAT = image("cat")
CAT_URL = CAT["image_url"]["url"]
LARGE = image("a" * 2**19)


async def _counted(cluster):
    return [await cluster.metric(f'embeddings_total{{source="{source}"}}') for source in ("encoded", "reused")]


def _leave(*asked):
    for each in asked:
        each.cancel()


@pytest.mark.parametrize("part", [CAT, LARGE], ids=["small", "large"])
async def test_ten_requests_with_one_image_encode_it_once(cluster, part):
    one, other, *_ = await cluster.up("E", "E", "P", "D")
    answers = await asyncio.gather(*(cluster.chat([part]) for _ in range(10)))
    key = item_hash(part["image_url"]["url"])
    assert [answer.text for answer in answers] == [f"<{key}>"] * 10
    assert len(one.seen) + len(other.seen) == 1
    leased = [call.body["lease"] for call in (*one.lease_calls, *other.lease_calls)]
    assert len(set(leased)) == len(leased) == 9
    assert await _counted(cluster) == [1, 9]
    await cluster.nothing_held()


async def test_each_request_hands_on_its_own_lease(cluster):
    encode, prefill, _ = await cluster.up("E", "P", "D")
    for number in range(3):
        await cluster.chat([CAT], headers={"X-Request-Id": f"r{number}"})
    handles = [body["ec_transfer_params"][item_hash(CAT_URL)]["handle"] for body in prefill.bodies("prefill")]
    assert [handle["lease"].split(":")[0] for handle in handles] == ["r0-e0", "r1-e0", "r2-e0"]
    assert len({handle["lease"] for handle in handles}) == 3
    assert encode.release_calls == []


async def test_what_is_asked_of_the_holder(cluster_with):
    async with cluster_with(token="secret") as cluster:
        encode, *_ = [await cluster.add(letters, models=("tiny", "adapter")) for letters in "EPD"]

        def apply(answer):
            for entry in answer["ec_transfer_params"].values():
                entry["lora"] = "/adapters/a"

        encode.does.change = apply
        for _ in range(2):
            assert (await cluster.chat([CAT], model="adapter", headers={"Authorization": "Bearer key"})).status == 200
        (call,) = encode.lease_calls
        lease = call.body.pop("lease")
        assert "-e0:" in lease
        assert call.body == {"key": item_hash(CAT_URL), "rank": 0, "model": "adapter", "lora": "/adapters/a"}
        assert call.headers["Authorization"] == "Bearer secret"


async def test_a_request_without_model_and_adapter_says_so(cluster):
    encode, *_ = await cluster.up("E", "P", "D")
    for _ in range(2):
        assert (await cluster.chat([CAT], model=None)).status == 200
    (call,) = encode.lease_calls
    assert (call.body["model"], call.body["lora"]) == (None, None)
    assert "Authorization" not in call.headers


@pytest.mark.parametrize(
    "other",
    [
        {"cache_salt": "s"},
        {"mm_processor_kwargs": {"max_pixels": 9}},
        {"media_io_kwargs": {"image": {"mode": "L"}}},
        {"model": "adapter"},
    ],
    ids=str,
)
async def test_what_shapes_the_embedding_makes_it_another(cluster, other):
    encode, *_ = [await cluster.add(letters, models=("tiny", "adapter")) for letters in "EPD"]
    for fields in ({}, other, other, {}):
        assert (await cluster.chat([CAT], **fields)).status == 200
    assert (len(encode.seen), len(encode.lease_calls)) == (2, 2)


async def test_instances_of_another_fingerprint_encode_for_themselves(cluster):
    newer = dataclasses.replace(FINGERPRINT, weights="w1")
    old = await cluster.up("E", "P", "D")
    new = [await cluster.add(letters, fingerprint=newer) for letters in "EPD"]
    with busy(cluster.instance(new[1])):
        await cluster.chat([CAT])
    with busy(cluster.instance(old[1])):
        await cluster.chat([CAT])
    assert [len(each.seen) for each in (old[0], new[0])] == [1, 1]
    assert old[0].lease_calls == new[0].lease_calls == []


@pytest.mark.parametrize("url", ["http://host/cat.png", "https://host/cat.png", "file:///cat.png"])
async def test_what_lies_elsewhere_is_always_encoded(cluster, url):
    encode, *_ = await cluster.up("E", "P", "D")
    part = {"type": "image_url", "image_url": {"url": url}}
    await asyncio.gather(*(cluster.chat([part, text("and"), part]) for _ in range(3)))
    await cluster.chat([part])
    assert len(encode.seen) == 4
    assert encode.lease_calls == []
    await cluster.nothing_held()


async def test_places_with_the_same_data_share_one_embedding(cluster):
    encode, prefill, _ = await cluster.up("E", "P", "D")
    await cluster.chat([{**CAT, "caption": "one"}, {**CAT, "caption": "two"}])
    assert len(encode.seen) == 1
    parts = prefill.bodies("prefill")[0]["messages"][0]["content"]
    assert [(part["uuid"], part["caption"]) for part in parts] == [
        (item_hash(CAT_URL), "one"),
        (item_hash(CAT_URL), "two"),
    ]
    await cluster.nothing_held()


async def test_parts_that_turn_out_to_be_the_same_item_keep_one_lease(cluster):
    encode, prefill, _ = await cluster.up("E", "P", "D")
    detailed = {"type": "image_url", "image_url": {**CAT["image_url"], "detail": "low"}}
    assert (await cluster.chat([CAT, detailed])).status == 200
    assert len(encode.seen) == 2
    (handle,) = [entry["handle"] for entry in prefill.bodies("prefill")[0]["ec_transfer_params"].values()]
    await soon(lambda: encode.release_calls)
    (given_back,) = encode.release_calls[0].body["leases"]
    assert given_back != handle["lease"]
    await cluster.nothing_held()


async def test_a_leader_that_fails_does_not_fail_the_others(cluster):
    encode, *_ = await cluster.up("E", "P", "D")
    broken = iter([True, True])  # once, and once more when it is tried again

    def drop_handle(answer):
        if next(broken, False):
            answer["ec_transfer_params"].clear()

    encode.does.change = drop_handle
    answers = await asyncio.gather(*(cluster.chat([CAT]) for _ in range(5)))
    assert sorted(answer.status for answer in answers) == [200, 200, 200, 200, 502]
    assert (len(encode.seen), len(encode.lease_calls)) == (3, 3)
    encode.leases.clear()  # of the answers that were of no use
    await cluster.nothing_held()


async def test_each_waiter_of_a_bad_image_is_refused_by_an_instance_itself(cluster):
    encode, *_ = await cluster.up("E", "P", "D")
    encode.does.status, encode.does.body = 400, {"error": {"message": "cannot identify image", "code": 400}}
    answers = await asyncio.gather(*(cluster.chat([CAT]) for _ in range(4)))
    assert [answer.status for answer in answers] == [400] * 4
    assert len(encode.seen) == 4
    await cluster.nothing_held()


async def test_a_leader_that_leaves_is_followed_by_one_of_the_others(cluster):
    encode, *_ = await cluster.up("E", "P", "D")
    encode.does.hold = asyncio.Event()
    leader = asyncio.create_task(cluster.chat([CAT]))
    await encode.arrived.wait()
    others = [asyncio.create_task(cluster.chat([CAT])) for _ in range(5)]
    await asyncio.sleep(0.1)
    assert len(encode.seen) == 1
    _leave(leader)
    await soon(lambda: len(encode.seen) == 2)
    await asyncio.sleep(0.05)
    assert [seen.outcome for seen in encode.seen] == ["aborted", "running"]
    encode.does.hold.set()
    assert [answer.status for answer in await asyncio.gather(*others)] == [200] * 5
    assert (len(encode.seen), len(encode.lease_calls)) == (2, 4)
    await cluster.nothing_held()


async def test_a_leader_whose_instance_is_gone_is_followed_elsewhere(cluster):
    gone, other, *_ = await cluster.up("E", "E", "P", "D")
    await gone.stop()
    with busy(cluster.instance(other)):
        answers = await asyncio.gather(*(cluster.chat([CAT]) for _ in range(5)))
    assert [answer.status for answer in answers] == [200] * 5
    assert cluster.instance(gone).suspended
    assert len(other.seen) == 1
    await cluster.nothing_held()


async def test_what_the_holder_has_dropped_is_encoded_again(cluster):
    encode, *_ = await cluster.up("E", "P", "D")
    await cluster.chat([CAT])
    encode.evict()
    encode.does.lease_hold = asyncio.Event()
    asked = [asyncio.create_task(cluster.chat([CAT])) for _ in range(4)]
    await soon(lambda: len(encode.lease_calls) == 4)
    encode.does.lease_hold.set()
    assert [answer.status for answer in await asyncio.gather(*asked)] == [200] * 4
    assert len(encode.seen) == 2
    assert await _counted(cluster) == [2, 3]
    await cluster.nothing_held()


async def test_a_holder_that_has_restarted_is_not_asked(cluster):
    encode, *_ = await cluster.up("E", "P", "D")
    await cluster.chat([CAT])
    encode.restart("2")
    await cluster.register(encode)
    assert (await cluster.chat([CAT])).status == 200
    assert (len(encode.seen), encode.lease_calls) == (2, [])


async def test_a_holder_that_has_left_is_not_asked(cluster):
    one, other, *_ = await cluster.up("E", "E", "P", "D")
    await cluster.chat([CAT])
    await cluster.remove(one)
    assert (await cluster.chat([CAT])).status == 200
    assert [len(one.seen), len(other.seen)] == [1, 1]
    assert one.lease_calls == other.lease_calls == []


async def test_a_holder_that_cannot_be_reached_is_passed_over(cluster, caplog):
    one, other, *_ = await cluster.up("E", "E", "P", "D")
    await cluster.chat([CAT])
    await one.stop()
    assert (await cluster.chat([CAT])).status == 200
    assert cluster.instance(one).suspended
    assert len(other.seen) == 1
    assert cluster.instance(one).pool.used == 0
    assert "starts over" not in caplog.text


@pytest.mark.parametrize("failure", ["status", "time", "nonsense"])
async def test_a_lease_that_cannot_be_had_costs_no_request(cluster_with, failure, caplog, monkeypatch):
    async with cluster_with(timeouts=Timeouts(lease_s=0.1)) as cluster:
        encode, *_ = await cluster.up("E", "P", "D")
        await cluster.chat([CAT])
        if failure == "status":
            encode.does.lease_status = 500
        elif failure == "time":
            encode.does.lease_hold = asyncio.Event()
        else:
            monkeypatch.setattr(encode, "_grant", lambda *args: "somewhere")
        asked = asyncio.create_task(cluster.chat([CAT]))
        await soon(lambda: encode.lease_calls)
        monkeypatch.undo()
        assert (await asked).status == 200
        assert len(encode.seen) == 2
        assert "an embedding cannot be used again" in caplog.text
        await soon(lambda: encode.release_calls)
        assert encode.release_calls[0].body == {"leases": [encode.lease_calls[0].body["lease"]], "rank": 0}
        await cluster.nothing_held()


async def test_a_client_that_leaves_while_a_lease_is_asked_for(cluster):
    encode, prefill, _ = await cluster.up("E", "P", "D")
    await cluster.chat([CAT])
    encode.does.lease_hold = asyncio.Event()
    asked = asyncio.create_task(cluster.chat([CAT]))
    await soon(lambda: encode.leases)
    _leave(asked)
    await cluster.nothing_held()
    assert len(encode.release_calls) == 1
    assert len(prefill.seen) == 1


async def test_only_so_much_is_remembered(cluster_with):
    async with cluster_with(reuse_entries=1) as cluster:
        encode, *_ = await cluster.up("E", "P", "D")
        for name in ("cat", "dog", "dog", "cat"):
            await cluster.chat([image(name)])
        assert (len(encode.seen), len(encode.lease_calls)) == (3, 1)


async def test_prefill_that_encodes_itself_is_not_spared(cluster):
    both, _ = await cluster.up("EP", "D")
    for _ in range(2):
        assert (await cluster.chat([CAT])).status == 200
    assert len(both.bodies("prefill")) == 2
    assert await _counted(cluster) == [0, 0]
