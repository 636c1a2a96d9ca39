# SPDX-License-Identifier: Apache-2.0
"""Requests wait in the router until prefill and decode instances have room for them."""

import asyncio
import time
from contextlib import asynccontextmanager

import pytest

from tests.fakes.instance import ITEM_BYTES
from tests.fakes.tokens import TokenInstance
from tests.unit.router.conftest import Cluster, busy, image, sized, soon
from vllm_epd.router.capacity import Ask
from vllm_epd.router.config import RouterConfig, Timeouts
from vllm_epd.router.failures import UnreachableError
from vllm_epd.types import Role

ONE = {"max_num_seqs": 1}
FOUR = {"max_num_seqs": 4}


def _waiting(cluster, stage=Role.PREFILL):
    return cluster.parts.services.scheduling.queues[stage].waiting


def _ask(cluster, name, words="hi", **fields):
    return asyncio.create_task(
        cluster.chat(words, headers={"X-Request-Id": name, **fields.pop("headers", {})}, **fields)
    )


async def _in_order(cluster, names, **fields):
    asked = []
    for name in names:
        before = _waiting(cluster)
        asked.append(_ask(cluster, name, **fields))
        await soon(lambda before=before: _waiting(cluster) == before + 1)
    return asked


async def _nothing_seated(cluster):
    await soon(lambda: not any(each.outstanding or each.work for each in cluster.registry.listed()))
    for each in cluster.registry.listed():
        assert (each.seated.sequences, each.seated.tokens) == (0, 0.0)


def served(fake):
    """The requests that an instance got, in order."""
    return [seen.request_id.split("-")[0] for seen in fake.seen]


@asynccontextmanager
async def in_real_time(session, **settings):
    """A router whose clock is that of the world."""
    cluster = Cluster(session, RouterConfig(**{"token": None, **settings}), time.monotonic)
    await cluster.start()
    try:
        yield cluster
    finally:
        await cluster.stop()


@pytest.mark.parametrize("letters", ["P", "PD"])
async def test_no_more_than_an_instance_runs_at_once_go_there(cluster, letters):
    prefill = await cluster.add(letters, limits=FOUR)
    await cluster.up("D")
    prefill.does.hold = asyncio.Event()
    asked = [_ask(cluster, str(number)) for number in range(9)]
    await soon(lambda: len(prefill.seen) == 4 and _waiting(cluster) == 5)
    assert await cluster.metric('waiting{stage="prefill"}') == 5
    prefill.does.hold.set()
    assert [answer.status for answer in await asyncio.gather(*asked)] == [200] * 9
    await _nothing_seated(cluster)
    assert await cluster.metric('waited_seconds_count{stage="prefill"}') == 9


async def test_a_kv_cache_holds_so_many_tokens(cluster):
    prefill = await cluster.add("P", limits={"kv_tokens": 250})
    await cluster.up("D")
    prefill.does.hold = asyncio.Event()
    asked = [_ask(cluster, str(number), "x" * 400) for number in range(3)]
    await soon(lambda: len(prefill.seen) == 2 and _waiting(cluster) == 1)
    prefill.does.hold.set()
    await asyncio.gather(*asked)
    assert (await cluster.chat("x" * 4000)).status == 200  # more than it holds is its own to refuse
    await _nothing_seated(cluster)


async def test_those_who_wait_go_where_there_is_room(cluster):
    one, other = [await cluster.add("P", limits=ONE) for _ in range(2)]
    await cluster.up("D")
    one.does.hold, other.does.hold = asyncio.Event(), asyncio.Event()
    first = [_ask(cluster, "a"), _ask(cluster, "b")]
    await soon(lambda: one.seen and other.seen)
    asked = await _in_order(cluster, "cde")
    other.does.hold.set()
    assert [answer.status for answer in await asyncio.gather(*asked)] == [200] * 3
    assert (len(one.seen), len(other.seen)) == (1, 4)
    one.does.hold.set()
    await asyncio.gather(*first)


async def test_an_instance_that_comes_takes_those_who_wait(cluster):
    one = await cluster.add("P", limits=ONE)
    await cluster.up("D")
    one.does.hold = asyncio.Event()
    first = _ask(cluster, "first")
    await one.arrived.wait()
    (second,) = await _in_order(cluster, ["second"])
    await cluster.add("P", limits=ONE)
    assert (await second).status == 200
    one.does.hold.set()
    await first


async def test_the_planned_instance_is_passed_over_if_it_has_left_meanwhile(cluster):
    encode, one = await cluster.up("E", "P")
    await cluster.up("D")
    encode.does.hold = asyncio.Event()
    asked = asyncio.create_task(cluster.chat([image("cat")]))
    await encode.arrived.wait()
    other = await cluster.add("P")
    await cluster.remove(one)
    encode.does.hold.set()
    assert (await asked).status == 200
    assert (len(one.seen), len(other.seen)) == (0, 1)


async def test_the_order_is_that_of_the_stage(cluster_with):
    async with cluster_with(prefill_order="sjf") as cluster:
        prefill = await cluster.add("P", limits=ONE)
        await cluster.up("D")
        prefill.does.hold = asyncio.Event()
        first = _ask(cluster, "first")
        await prefill.arrived.wait()
        asked = []
        for size in (300, 100, 200):
            asked += await _in_order(cluster, [str(size)], words="x" * size)
        prefill.does.hold.set()
        await asyncio.gather(first, *asked)
        assert served(prefill) == ["first", "100", "200", "300"]


async def test_the_least_slack_comes_first(cluster_with):
    async with cluster_with(order="slack", ttft_slo_s=5.0) as cluster:
        prefill = await cluster.add("P", limits=ONE)
        await cluster.up("D")
        prefill.does.hold = asyncio.Event()
        first = _ask(cluster, "first")
        await prefill.arrived.wait()
        asked = []
        for name, slo in (("late", "9000"), ("default", None), ("soon", "200")):
            headers = {} if slo is None else {"X-Request-TTFT-SLO-Ms": slo}
            asked += await _in_order(cluster, [name], headers=headers)
        prefill.does.hold.set()
        await asyncio.gather(first, *asked)
        assert served(prefill) == ["first", "soon", "default", "late"]


async def test_decode_is_waited_for_apart_where_its_kv_cache_waits_at_prefill(cluster):
    prefill, decode = await cluster.add("P"), await cluster.add("D", limits=ONE)
    decode.does.hold = asyncio.Event()
    asked = [_ask(cluster, name) for name in "abc"]
    await soon(lambda: _waiting(cluster, Role.DECODE) == 2)
    # P keeps the KV caches of those that wait.
    assert cluster.instance(prefill).seated.sequences == 2
    decode.does.hold.set()
    assert [answer.status for answer in await asyncio.gather(*asked)] == [200] * 3
    await _nothing_seated(cluster)


@pytest.mark.parametrize("scarce", ["prefill", "decode"])
async def test_p_and_d_are_taken_together_or_not_at_all(cluster, scarce):
    limits = {"resume": 1}
    prefill = await cluster.add(
        "P", TokenInstance, kv="epd", kv_agents=("a",), limits=limits | (ONE if scarce == "prefill" else {})
    )
    decode = await cluster.add("D", TokenInstance, kv="epd", limits=limits | (ONE if scarce == "decode" else {}))
    prefill.does.hold = asyncio.Event()
    first = _ask(cluster, "first")
    await prefill.arrived.wait()
    asked = await _in_order(cluster, "abc")
    assert [cluster.instance(each).seated.sequences for each in (prefill, decode)] == [1, 1]
    prefill.does.hold.set()
    assert [answer.status for answer in await asyncio.gather(first, *asked)] == [200] * 4
    await _nothing_seated(cluster)


async def test_pairs_that_are_both_scarce_never_wait_for_each_other(cluster):
    for letters, count in (("P", 2), ("D", 3)):
        for _ in range(count):
            limits = {**ONE, "resume": 1}
            await cluster.add(letters, TokenInstance, kv="epd", kv_agents=("a",), limits=limits)
    asked = [_ask(cluster, str(number), f"n{number} x", n=1 + number % 3) for number in range(60)]
    answers = await asyncio.wait_for(asyncio.gather(*asked), 60)
    assert [answer.status for answer in answers] == [200] * 60
    await _nothing_seated(cluster)


async def test_many_choices_take_their_places_one_after_the_other(cluster):
    prefill = await cluster.add("P", limits=ONE)
    await cluster.add("D", limits=ONE)
    answer = await asyncio.wait_for(cluster.complete(["a", "b", "c"], n=3), 20)
    assert len(answer.texts) == 9
    assert len(prefill.seen) == 9
    await _nothing_seated(cluster)


async def test_an_instance_that_does_all_counts_every_choice(cluster):
    whole = await cluster.add("EPD", limits=FOUR)
    whole.does.hold = asyncio.Event()
    asked = [_ask(cluster, "three", n=3), _ask(cluster, "two", n=2)]
    await soon(lambda: len(whole.seen) == 1 and _waiting(cluster) == 1)
    whole.does.hold.set()
    await asyncio.gather(*asked)
    await _nothing_seated(cluster)


async def test_a_client_that_leaves_the_queue_makes_way(cluster):
    prefill = await cluster.add("P", limits=ONE)
    await cluster.up("D")
    prefill.does.hold = asyncio.Event()
    first = _ask(cluster, "first")
    await prefill.arrived.wait()
    left, stays = await _in_order(cluster, ["left", "stays"])
    left.cancel()
    await soon(lambda: _waiting(cluster) == 1)
    prefill.does.hold.set()
    await asyncio.gather(first, stays)
    assert served(prefill) == ["first", "stays"]
    await _nothing_seated(cluster)


async def test_what_fails_gives_its_place_back(cluster):
    prefill, decode = await cluster.add("P", limits=ONE), await cluster.add("D", limits=ONE)
    for fake in (prefill, decode):
        fake.does.status = 500
        assert (await cluster.chat("hi")).status == 500
        fake.does.status = 200
        await _nothing_seated(cluster)
    assert (await cluster.chat("hi")).status == 200


async def test_more_than_may_wait_are_refused_before_anything_is_encoded(cluster_with):
    async with cluster_with(max_queue=2) as cluster:
        encode, prefill = await cluster.add("E"), await cluster.add("P", limits=ONE)
        await cluster.up("D")
        prefill.does.hold = asyncio.Event()
        first = _ask(cluster, "first")
        await prefill.arrived.wait()
        asked = await _in_order(cluster, "ab")
        answer = await cluster.chat([image("cat")])
        assert (answer.status, answer.headers["Retry-After"]) == (429, "1")
        assert answer.error["type"] == "TooManyRequestsError"
        assert "2 requests wait for prefill, and no more may" in answer.error["message"]
        assert encode.seen == []
        prefill.does.hold.set()
        assert [answer.status for answer in await asyncio.gather(first, *asked)] == [200] * 3


async def test_the_queue_of_the_encoders_is_bounded_too(cluster_with):
    async with cluster_with(max_queue=1) as cluster:
        encode = await cluster.add("E", limits={"pool_bytes": ITEM_BYTES, "max_item_bytes": ITEM_BYTES})
        await cluster.up("P", "D")
        encode.does.hold = asyncio.Event()
        asked = [asyncio.create_task(cluster.chat([image("a")]))]
        await encode.arrived.wait()
        asked += [asyncio.create_task(cluster.chat([image("b")]))]
        await soon(lambda: _waiting(cluster, Role.ENCODE) == 1)
        answer = await cluster.chat([image("c")])
        assert (answer.status, "1 requests wait for encode" in answer.error["message"]) == (429, True)
        encode.does.hold.set()
        assert [answer.status for answer in await asyncio.gather(*asked)] == [200] * 2


async def test_who_waits_too_long_is_told_so(cluster_with):
    async with cluster_with(timeouts=Timeouts(prefill_s=0.2)) as cluster:
        prefill = await cluster.add("P", limits=ONE)
        await cluster.up("D")
        cluster.instance(prefill).seated.take(Ask())
        answer = await cluster.chat("hi")
        assert (answer.status, answer.headers["Retry-After"]) == (503, "1")
        assert "no prefill instance has had room for 0.2 s" in answer.error["message"]


async def test_a_time_limit_ends_a_call_to_an_instance(session):
    async with in_real_time(session) as cluster:
        prefill, _ = await cluster.up("P", "D")
        prefill.does.hold = asyncio.Event()
        answer = await cluster.chat("hi", headers={"X-Request-Timeout-Ms": "100"})
        assert (answer.status, "did not answer in time" in answer.error["message"]) == (504, True)
        await soon(lambda: prefill.seen[0].outcome == "aborted")
        await _nothing_seated(cluster)


async def test_a_time_limit_ends_a_wait(session):
    async with in_real_time(session) as cluster:
        prefill = await cluster.add("P", limits=ONE)
        await cluster.up("D")
        prefill.does.hold = asyncio.Event()
        first = _ask(cluster, "first")
        await prefill.arrived.wait()
        answer = await cluster.chat("hi", headers={"X-Request-Timeout-Ms": "100"})
        assert (answer.status, answer.headers["Retry-After"]) == (503, "1")
        assert "was over before prefill could begin" in answer.error["message"]
        prefill.does.hold.set()
        await first


async def test_who_cannot_be_in_time_is_refused_at_once(session):
    async with in_real_time(session) as cluster:
        encode, prefill = await cluster.add("E"), await cluster.add("P", limits=ONE)
        await cluster.up("D")
        prefill.does.hold = asyncio.Event()
        asked = [_ask(cluster, "first")]
        await prefill.arrived.wait()
        asked += await _in_order(cluster, "abc")
        await asyncio.sleep(0.3)
        hold, prefill.does.hold = prefill.does.hold, asyncio.Event()
        hold.set()  # one gets in after 0.3 s, so the other two take 0.6 s
        await soon(lambda: _waiting(cluster) == 2)
        answer = await cluster.chat([image("cat")], headers={"X-Request-Timeout-Ms": "400"})
        assert (answer.status, answer.headers["Retry-After"]) == (503, "1")
        assert "ends before prefill would begin" in answer.error["message"]
        assert encode.seen == []
        prefill.does.hold.set()
        await asyncio.gather(*asked)


async def test_a_bad_header_is_the_clients_mistake(cluster):
    await cluster.up("P", "D")
    answer = await cluster.chat("hi", headers={"X-Request-TTFT-SLO-Ms": "soon"})
    assert (answer.status, answer.error["param"]) == (400, "X-Request-TTFT-SLO-Ms")


async def test_a_prompt_goes_where_its_beginning_has_been(cluster_with):
    async with cluster_with(prefill_policy="cache_aware") as cluster:
        one, other, _ = await cluster.up("P", "P", "D")
        begin = "".join(f"sentence {number}. " for number in range(300))
        await cluster.chat(begin + "one")
        await cluster.chat("something else " * 100)
        home = one if "sentence" in str(one.seen[0].body) else other
        before = len(home.seen)
        for number in range(6):
            await cluster.chat(begin + f"question {number}")
        assert len(home.seen) == before + 6
        with busy(cluster.instance(home), 1e6):
            await cluster.chat(begin + "and now?")
        assert len(home.seen) == before + 6


async def test_media_behind_a_url_goes_where_it_has_been(cluster_with):
    async with cluster_with(encode_policy="cache_aware") as cluster:
        one, other, _, _ = await cluster.up("E", "E", "P", "D")
        part = {"type": "image_url", "image_url": {"url": "http://example.org/cat.png"}}
        for _ in range(4):
            await cluster.chat([part])
        assert sorted([len(one.seen), len(other.seen)]) == [0, 4]


@pytest.mark.parametrize("policy", ["least_loaded", "least_outstanding"])
async def test_the_media_of_a_request_is_shared_out_by_its_cost(cluster_with, policy):
    async with cluster_with(encode_policy=policy) as cluster:
        fakes = await cluster.up("E", "E")
        await cluster.up("P", "D")
        hold = asyncio.Event()
        for fake in fakes:
            fake.does.hold = hold
        asked = asyncio.create_task(cluster.chat([sized(280, 280, n) for n in range(4)] + [sized(560, 560, 9)]))
        await soon(lambda: sum(len(fake.seen) for fake in fakes) == 5)
        counts = {"least_loaded": [1, 4], "least_outstanding": [2, 3]}
        assert sorted(len(fake.seen) for fake in fakes) == counts[policy]
        hold.set()
        assert (await asked).status == 200


async def test_two_hundred_at_once_are_answered_or_refused(session):
    """None is dropped, and what the router counts is what the clients saw."""
    limits = {"resume": 1, "max_num_seqs": 8, "kv_tokens": 4000}
    async with in_real_time(session, max_queue=48, order="slack") as cluster:
        encode = await cluster.add("E", limits={"pool_bytes": 8 * ITEM_BYTES, "max_item_bytes": ITEM_BYTES})
        await cluster.add("P", TokenInstance, kv="epd", kv_agents=("a",), limits=limits)
        await cluster.add("D", TokenInstance, kv="epd", limits=limits)
        asked = []
        for number in range(200):
            content = [image(f"n{number}-{each}") for each in range(number % 4)] + [{"type": "text", "text": "so"}]
            headers = {"X-Request-TTFT-SLO-Ms": str(100 + number)}
            asked.append(cluster.chat(content, headers=headers, stream=number % 2 == 0))
        answers = await asyncio.wait_for(asyncio.gather(*asked), 60)
        statuses = [answer.status for answer in answers]
        assert set(statuses) == {200, 429}
        assert all(int(answer.headers["Retry-After"]) > 0 for answer in answers if answer.status == 429)
        for answer in answers[::2]:
            assert answer.status == 429 or answer.streamed
        route = 'requests_total{route="/v1/chat/completions",status="%d"}'
        for status in (200, 429):
            assert await cluster.metric(route % status) == statuses.count(status)
        await cluster.nothing_held()
        await _nothing_seated(cluster)
        assert [_waiting(cluster, role) for role in Role] == [0, 0, 0]
        assert encode.leases == {}


async def test_a_decoder_that_is_back_after_a_refused_connection_is_counted_again(cluster, monkeypatch):
    limits = {"resume": 1}
    await cluster.add("P", TokenInstance, kv="epd", kv_agents=("a",), limits=limits)
    decode = await cluster.add("D", TokenInstance, kv="epd", limits=limits)
    suspend = cluster.registry.suspend

    def suspend_for_a_moment(instance):
        suspend(instance)
        cluster.registry.register(decode.info())

    monkeypatch.setattr(cluster.registry, "suspend", suspend_for_a_moment)
    post, failed = cluster.parts.services.client.post, []

    @asynccontextmanager
    async def fail_once(stage, instance, path, *args, **kwargs):
        if stage is Role.DECODE and path.startswith("/v1") and not failed:
            failed.append(instance)
            raise UnreachableError("no connection", stage="decode", instance=instance)
        async with post(stage, instance, path, *args, **kwargs) as answer:
            yield answer

    monkeypatch.setattr(cluster.parts.services.client, "post", fail_once)
    decode.does.hold = asyncio.Event()
    asked = _ask(cluster, "a")
    await decode.arrived.wait()
    assert cluster.instance(decode).seated.sequences == 1
    decode.does.hold.set()
    assert (await asked).status == 200
    assert failed
    await _nothing_seated(cluster)
