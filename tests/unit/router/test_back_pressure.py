# SPDX-License-Identifier: Apache-2.0
"""Requests wait in the router until the pools of the encoders have room for them.

The stub encoders complain of more than their pools hold; each test ends with that check.
"""

import asyncio
import random

import pytest

from tests.fakes.instance import ITEM_BYTES
from tests.unit.router.conftest import busy, image, soon
from vllm_epd.router.config import Timeouts

FOUR = {"pool_bytes": 4 * ITEM_BYTES, "max_item_bytes": ITEM_BYTES}
ONE = {"pool_bytes": ITEM_BYTES, "max_item_bytes": ITEM_BYTES}


def _waiting(cluster):
    return cluster.parts.services.encoders.queue.waiting


def _ask(cluster, *names, **fields):
    return asyncio.create_task(cluster.chat([image(name) for name in names], **fields))


async def _ask_in_order(cluster, names):
    """Requests that are known to the router in this order; none is admitted meanwhile."""
    asked = []
    for name in names:
        before = _waiting(cluster)
        asked.append(_ask(cluster, name, headers={"X-Request-Id": name}))
        await soon(lambda before=before: _waiting(cluster) == before + 1)
    return asked


@pytest.mark.parametrize("encoders", [1, 2])
async def test_forty_images_against_pools_of_four(cluster, encoders):
    fakes = [await cluster.add("E", limits=FOUR) for _ in range(encoders)]
    await cluster.up("P", "D")
    answers = await asyncio.gather(*(_ask(cluster, f"n{number}") for number in range(40)))
    assert [answer.status for answer in answers] == [200] * 40
    assert [fake.peak for fake in fakes] == [4 * ITEM_BYTES] * encoders
    assert sum(len(fake.seen) for fake in fakes) == 40
    assert all(fake.release_calls == [] for fake in fakes)
    await cluster.nothing_held()


async def test_first_come_first_served(cluster):
    encode = await cluster.add("E", limits=ONE)
    await cluster.up("P", "D")
    encode.does.hold = asyncio.Event()
    first = _ask(cluster, "first")
    await encode.arrived.wait()
    names = [f"n{number}" for number in range(12)]
    asked = await _ask_in_order(cluster, names)
    assert await cluster.metric('waiting{stage="encode"}') == 12
    encode.does.hold.set()
    await asyncio.gather(first, *asked)
    assert [seen.request_id for seen in encode.seen[1:]] == [f"{name}-e0" for name in names]
    assert await cluster.metric('waiting{stage="encode"}') == 0


@pytest.mark.parametrize("pools", [[4], [4, 2], [1], [3, 1]], ids=str)
async def test_requests_with_several_images_do_not_wait_for_each_other_forever(cluster, pools):
    for items in pools:
        await cluster.add("E", limits={"pool_bytes": items * ITEM_BYTES, "max_item_bytes": ITEM_BYTES})
    await cluster.up("P", "P", "D")
    chance = random.Random(0)
    most = min(3, sum(pools))
    requests = [chance.sample([f"n{n}" for n in range(8)], chance.randint(1, most)) for _ in range(60)]
    answers = await asyncio.wait_for(asyncio.gather(*(_ask(cluster, *names) for names in requests)), 60)
    assert [answer.status for answer in answers] == [200] * 60
    await cluster.nothing_held()


async def test_a_request_larger_than_all_pools_is_admitted_alone(cluster):
    one, other = [await cluster.add("E", limits=FOUR) for _ in range(2)]
    _, decode = await cluster.up("P", "D")
    names = [f"n{number}" for number in range(10)]
    one.does.hold = asyncio.Event()
    before = _ask(cluster, "before")
    await one.arrived.wait()
    large = _ask(cluster, *names)
    await soon(lambda: _waiting(cluster) == 1)
    one.does.hold.set()
    assert [answer.status for answer in await asyncio.gather(before, large)] == [200] * 2
    assert [len(fake.seen) for fake in (one, other)] == [6, 5]
    await cluster.nothing_held()
    for fake in (one, other):
        assert fake.overruns
        fake.overruns.clear()


async def test_an_image_larger_than_expected_fills_the_pool_as_it_is(cluster):
    encode = await cluster.add("E", limits={"pool_bytes": 4 * ITEM_BYTES, "max_item_bytes": 10}, item_bytes=100)
    prefill, _ = await cluster.up("P", "D")
    prefill.does.hold = asyncio.Event()
    asked = [_ask(cluster, "a")]
    await prefill.arrived.wait()
    assert await cluster.metric(f'pool_held_bytes{{instance="{encode.instance_id}"}}') == 100
    asked.append(_ask(cluster, "b", "c", "d"))
    await soon(lambda: len(prefill.seen) == 2)
    asked += await _ask_in_order(cluster, ["e"])
    prefill.does.hold.set()
    assert [answer.status for answer in await asyncio.gather(*asked)] == [200] * 3


async def test_an_instance_that_tells_no_size_has_always_room(cluster):
    encode, *_ = await cluster.up("E", "P", "D")
    encode.does.hold = asyncio.Event()
    asked = [_ask(cluster, f"n{number}") for number in range(20)]
    await soon(lambda: len(encode.seen) == 20)
    encode.does.hold.set()
    await asyncio.gather(*asked)


async def test_an_embedding_in_use_is_shared_though_the_pool_is_full(cluster):
    encode = await cluster.add("E", limits=ONE)
    prefill, _ = await cluster.up("P", "D")
    prefill.does.hold = asyncio.Event()
    asked = [_ask(cluster, "cat") for _ in range(3)]
    await soon(lambda: len(prefill.seen) == 3)
    assert cluster.instance(encode).pool.used == ITEM_BYTES
    prefill.does.hold.set()
    await asyncio.gather(*asked)
    await cluster.nothing_held()


async def test_an_embedding_that_nobody_holds_needs_room_to_be_leased(cluster):
    encode = await cluster.add("E", limits=ONE)
    prefill, _ = await cluster.up("P", "D")
    await cluster.chat([image("cat")])
    prefill.does.hold = asyncio.Event()
    dog = _ask(cluster, "dog")
    await soon(lambda: len(prefill.seen) == 2)
    (cat,) = await _ask_in_order(cluster, ["cat"])
    assert encode.lease_calls == []
    prefill.does.hold.set()
    assert [answer.status for answer in await asyncio.gather(dog, cat)] == [200] * 2
    assert len(encode.lease_calls) == 1


async def test_an_embedding_whose_pool_is_full_of_others_is_made_elsewhere(cluster):
    full = await cluster.add("E", limits=ONE)
    prefill, _ = await cluster.up("P", "D")
    await cluster.chat([image("cat")])
    prefill.does.hold = asyncio.Event()
    dog = _ask(cluster, "dog")
    await soon(lambda: len(prefill.seen) == 2)
    other = await cluster.add("E", limits=ONE)
    cat = _ask(cluster, "cat")
    await soon(lambda: len(other.seen) == 1)
    prefill.does.hold.set()
    assert [answer.status for answer in await asyncio.gather(dog, cat)] == [200] * 2
    assert full.lease_calls == []


async def _full(cluster, **limits):
    """An encoder whose pool is full for as long as `prefill` holds its request."""
    encode = await cluster.add("E", limits=limits or ONE)
    prefill, decode = await cluster.up("P", "D")
    prefill.does.hold = asyncio.Event()
    asked = _ask(cluster, "first")
    await prefill.arrived.wait()
    return encode, prefill, decode, asked


async def test_a_client_that_leaves_the_queue(cluster):
    encode, prefill, _, first = await _full(cluster)
    left, stays = await _ask_in_order(cluster, ["left", "stays"])
    left.cancel()
    await soon(lambda: _waiting(cluster) == 1)
    prefill.does.hold.set()
    assert [answer.status for answer in await asyncio.gather(first, stays)] == [200] * 2
    assert [seen.request_id.split("-")[0] for seen in encode.seen[1:]] == ["stays"]
    await cluster.nothing_held()


async def test_a_client_that_leaves_while_its_image_is_encoded(cluster):
    encode = await cluster.add("E", limits=ONE)
    await cluster.up("P", "D")
    encode.does.hold = asyncio.Event()
    asked = _ask(cluster, "cat")
    await encode.arrived.wait()
    assert cluster.instance(encode).pool.used == ITEM_BYTES
    asked.cancel()
    await cluster.nothing_held()
    encode.does.hold.set()
    assert (await cluster.chat([image("dog")])).status == 200


async def test_a_client_that_leaves_before_anybody_hears_what_is_encoded(cluster):
    encode = await cluster.add("E", limits=ONE)
    await cluster.up("P", "D")
    encode.does.unheard = asyncio.Event()
    asked = _ask(cluster, "cat")
    await soon(lambda: encode.leases)
    asked.cancel()
    await cluster.nothing_held()
    (call,) = encode.forget_calls
    assert call.body == {"transfer": encode.seen[0].body["ec_transfer_params"]["epd"]["offer"]}


async def test_a_client_that_leaves_between_encode_and_prefill(cluster):
    encode, prefill, _, first = await _full(cluster)
    (lease,) = encode.leases
    first.cancel()
    await cluster.nothing_held()
    (call,) = encode.release_calls
    assert call.body == {"leases": [lease], "rank": 0}


async def test_what_is_encoded_is_given_back_when_another_image_fails(cluster):
    good, bad = [await cluster.add("E", limits=FOUR) for _ in range(2)]
    await cluster.up("P", "D")
    bad.does.status, bad.does.body, bad.does.hold = 400, {"error": {"message": "no", "code": 400}}, asyncio.Event()
    asked = _ask(cluster, "cat", "dog")
    await soon(lambda: bad.seen and good.leases)
    bad.does.hold.set()
    assert (await asked).status == 400
    await cluster.nothing_held()
    assert len(good.release_calls) == 1


@pytest.mark.parametrize("letters", ["P", "PD"])
async def test_a_prefill_that_fails_gives_the_embeddings_back(cluster, letters):
    encode = await cluster.add("E", limits=FOUR)
    prefill, _ = await cluster.up(letters, "D")
    prefill.does.status, prefill.does.body = 500, {"error": {"message": "no", "code": 500}}
    assert (await cluster.chat([image("cat"), image("dog")])).status == 500
    await cluster.nothing_held()
    assert [len(call.body["leases"]) for call in encode.release_calls] == [2, 2]  # of each of two tries


async def test_the_releases_carry_the_token(cluster_with):
    async with cluster_with(token="secret") as cluster:
        encode, prefill, _ = await cluster.up("E", "P", "D")
        prefill.does.status = 500
        await cluster.chat([image("cat")])
        await cluster.nothing_held()
        assert encode.release_calls[0].headers["Authorization"] == "Bearer secret"


async def test_a_release_that_fails_is_no_matter(cluster, caplog):
    encode, prefill, _ = await cluster.up("E", "P", "D")
    caplog.set_level("INFO", logger="vllm_epd.router.calls")
    prefill.does.status, prefill.does.hold = 500, asyncio.Event()
    asked = _ask(cluster, "cat")
    await prefill.arrived.wait()
    await encode.stop()
    prefill.does.hold.set()
    assert (await asked).status == 503
    await soon(lambda: "could not be told /epd/leases/release" in caplog.text)


async def test_what_is_held_is_free_when_prefill_has_answered(cluster):
    encode, prefill, decode, first = await _full(cluster)
    decode.does.hold = asyncio.Event()
    (second,) = await _ask_in_order(cluster, ["second"])
    prefill.does.hold.set()
    await soon(lambda: len(encode.seen) == 2)
    assert not first.done()
    decode.does.hold.set()
    await asyncio.gather(first, second)
    assert encode.release_calls == []


@pytest.mark.parametrize("stream", [False, True])
async def test_what_is_held_is_free_when_the_answer_has_begun(cluster, stream):
    encode = await cluster.add("E", limits=ONE)
    (both,) = await cluster.up("PD")
    both.does.words, both.does.gate, both.does.hold = ["one", "two"], asyncio.Event(), asyncio.Event()
    asked = _ask(cluster, "cat", stream=stream)
    await both.arrived.wait()
    assert cluster.instance(encode).pool.used == ITEM_BYTES
    both.does.hold.set()
    await soon(lambda: not cluster.instance(encode).pool.used)
    if stream:
        assert not asked.done()
    both.does.gate.set()
    assert (await asked).status == 200
    assert encode.release_calls == []


async def test_what_is_held_is_free_when_all_choices_are_prefilled(cluster):
    encode = await cluster.add("E", limits=ONE)
    prefill, decode = await cluster.up("P", "D")
    again = asyncio.Event()

    def hold_the_others(answer):
        prefill.does.hold = again

    prefill.does.change = hold_the_others
    asked = _ask(cluster, "cat", n=2)
    await soon(lambda: [seen.outcome for seen in decode.seen] == ["answered"])
    await soon(lambda: len(prefill.seen) == 2)
    assert cluster.instance(encode).pool.used == ITEM_BYTES
    again.set()
    assert len((await asked).texts) == 2
    assert encode.release_calls == []
    await cluster.nothing_held()


async def test_a_choice_that_fails_gives_the_embeddings_back(cluster):
    encode, prefill, _ = await cluster.up("E", "P", "D")

    def then_fail(answer):
        prefill.does.status = 500

    prefill.does.change = then_fail
    assert (await cluster.chat([image("cat")], n=3)).status == 500
    await cluster.nothing_held()
    await soon(lambda: len(encode.release_calls) == 2)  # of each of two tries


async def test_who_waits_too_long_is_told_that_the_pools_are_full(cluster_with):
    async with cluster_with(timeouts=Timeouts(encode_s=0.2)) as cluster:
        _, prefill, _, first = await _full(cluster)
        answer = await cluster.chat([image("second")])
        assert (answer.status, answer.headers["Retry-After"]) == (503, "1")
        assert "pools of the encode instances have been full for 0.2 s" in answer.error["message"]
        prefill.does.hold.set()
        assert (await first).status == 200
        await cluster.nothing_held()


async def test_an_instance_that_comes_takes_those_who_wait(cluster):
    _, prefill, _, first = await _full(cluster)
    (second,) = await _ask_in_order(cluster, ["second"])
    other = await cluster.add("E", limits=ONE)
    await soon(lambda: len(other.seen) == 1)
    prefill.does.hold.set()
    await asyncio.gather(first, second)


@pytest.mark.parametrize("how", ["leaves", "falls silent"])
async def test_those_who_wait_for_an_instance_that_is_gone_are_told_so(cluster, clock, how):
    encode, prefill, _, first = await _full(cluster)
    (second,) = await _ask_in_order(cluster, ["second"])
    if how == "leaves":
        await cluster.remove(encode)
    else:
        clock.now += 7
    answer = await asyncio.wait_for(second, 5)
    assert (answer.status, "no encode instance" in answer.error["message"]) == (503, True)
    first.cancel()


async def test_an_encode_that_is_tried_elsewhere_takes_its_room_along(cluster):
    bad, full, good = [await cluster.add("E", limits=ONE) for _ in range(3)]
    await cluster.up("P", "D")
    bad.does.status = 500
    good.does.hold = asyncio.Event()
    known = [cluster.instance(each) for each in (bad, full, good)]
    known[1].pool.take("x", ITEM_BYTES)
    with busy(known[2]):
        asked = _ask(cluster, "cat")
        await good.arrived.wait()
        assert [each.pool.used for each in known] == [0, ITEM_BYTES, ITEM_BYTES]
    known[1].pool.drop("x")
    good.does.hold.set()
    assert (await asked).status == 200
    assert [len(each.seen) for each in (bad, full, good)] == [1, 0, 1]
    await cluster.nothing_held()


async def test_what_was_encoded_tells_how_much_room_the_next_ones_take(cluster):
    encode = await cluster.add("E", limits={**FOUR, "max_item_bytes": 4 * ITEM_BYTES})
    await cluster.up("P", "D")
    await cluster.chat([image("first")])
    encode.does.hold = asyncio.Event()
    asked = [_ask(cluster, f"n{number}") for number in range(5)]
    await soon(lambda: len(encode.seen) == 5 and _waiting(cluster) == 1)
    encode.does.hold.set()
    assert [answer.status for answer in await asyncio.gather(*asked)] == [200] * 5


async def test_a_request_that_starts_over_does_not_wait_for_its_own_room(cluster, monkeypatch):
    encode, gone = [await cluster.add("E", limits=ONE) for _ in range(2)]
    await cluster.up("P", "D")
    client = cluster.parts.services.client
    ask = client.ask

    async def ask_late(stage, instance, *args, **kwargs):
        if instance.name == gone.instance_id:
            await soon(lambda: encode.leases)
            await asyncio.sleep(0.05)
            await gone.stop()
        return await ask(stage, instance, *args, **kwargs)

    monkeypatch.setattr(client, "ask", ask_late)
    answer = await asyncio.wait_for(_ask(cluster, "cat", "dog"), 10)
    assert answer.status == 200
    assert cluster.instance(gone).suspended
    encode.overruns.clear()  # both are larger than the one pool that is left
    await cluster.nothing_held()


async def test_a_router_that_leaves_gives_back_what_its_requests_held(cluster_with):
    async with cluster_with() as cluster:
        encode, prefill, _ = await cluster.up("E", "P", "D")
        prefill.does.hold, encode.does.release_hold = asyncio.Event(), asyncio.Event()
        asked = _ask(cluster, "cat")
        await prefill.arrived.wait()
        asked.cancel()
        await soon(lambda: encode.release_calls)
        leaving = asyncio.create_task(cluster.leave())
        await asyncio.sleep(0.05)
        assert not leaving.done()
        encode.does.release_hold.set()
        await leaving
        assert encode.leases == {}


async def test_text_does_not_wait(cluster):
    _, prefill, _, first = await _full(cluster)
    await _ask_in_order(cluster, ["second"])
    prefill.does.hold.set()
    assert (await cluster.chat("plain words")).status == 200
    await first


async def test_whatever_goes_wrong_nothing_stays_held(cluster):
    encoders = [
        await cluster.add("E", limits={"pool_bytes": items * ITEM_BYTES, "max_item_bytes": ITEM_BYTES})
        for items in (3, 2)
    ]
    prefill, *_ = await cluster.up("P", "P", "D")
    chance = random.Random(1)

    def disturb(answer):
        for fake in (*encoders, prefill):
            fake.does.status = chance.choice([200, 200, 200, 400, 500])
        chance.choice(encoders).evict()

    for fake in (*encoders, prefill):
        fake.does.change = disturb
    asked = []
    for _ in range(120):
        names = chance.sample([f"n{n}" for n in range(12)], chance.randint(1, 5))
        asked.append(_ask(cluster, *names))
        await asyncio.sleep(chance.random() * 0.01)
        if chance.random() < 0.3:
            chance.choice(asked).cancel()
        for fake in (*encoders, prefill):
            fake.does.status = 200
    answers = await asyncio.wait_for(asyncio.gather(*asked, return_exceptions=True), 60)
    statuses = {answer.status for answer in answers if not isinstance(answer, BaseException)}
    assert statuses - {500} == {200, 400}
    for fake in encoders:  # an answer that nobody reads any more leaves its lease to run out
        fake.leases.clear()
        fake.overruns.clear()
    await cluster.nothing_held()
