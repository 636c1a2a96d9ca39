# SPDX-License-Identifier: Apache-2.0
"""Instances die in the middle of requests, and the clients do not notice."""

import asyncio

import pytest

from tests.fakes.tokens import TokenInstance
from tests.unit.router.conftest import image, soon, text
from tests.unit.router.test_first_token import EACH_USAGE, LOGPROBS, USAGE, D, P, compared
from vllm_epd.types import Fingerprint

HEADERS = {"X-Request-Id": "abc"}
STREAMS = {"stream": {"stream": True}, "usage": USAGE, "each": EACH_USAGE}
ANOTHER = Fingerprint("c1", "w1", "bfloat16", "p1", "0.32.0")


@pytest.fixture
async def single(cluster_with):
    """A router before one whole instance: what it answers is right."""
    async with cluster_with() as other:
        await other.add("EPD", make=TokenInstance)
        yield other


async def fleet(cluster):
    """One E, two P and two D."""
    encode = await cluster.add("E", limits={"pool_bytes": 10**6, "max_item_bytes": 1000})
    ps = [await cluster.add("P", **{**P, "epoch": f"p{index}"}) for index in range(2)]
    ds = [await cluster.add("D", **{**D, "epoch": f"d{index}"}) for index in range(2)]
    return encode, ps, ds


def break_off(fake, after):
    """Have an instance break off once, and be well after that."""
    fake.does.break_after = after

    def count(request, seen):
        fake.does.break_after = after if not broken else None
        broken.append(seen)
        return answered(request, seen)

    broken, answered = [], fake._answer
    fake._answer = count


async def same(cluster, single, content, **fields):
    """The answer, which is that of a single instance."""
    got = await cluster.chat(content, headers=HEADERS, **fields)
    return compared(got, await single.chat(content, headers=HEADERS, **fields), fields)


@pytest.mark.parametrize("way", STREAMS.values(), ids=STREAMS)
@pytest.mark.parametrize("after", [1, 2, 3, 7, 11])
async def test_a_stream_goes_on_at_another_decode_instance(cluster, single, way, after):
    _, _, decodes = await fleet(cluster)
    for fake in decodes:
        break_off(fake, after)
    await same(cluster, single, "tell me", **way, **LOGPROBS)
    assert len([seen for fake in decodes for seen in fake.seen]) >= 2
    assert await cluster.metric('retries_total{stage="decode"}') >= 1
    await cluster.nothing_held()


async def test_a_stream_may_go_on_more_than_once(cluster, single):
    _, prefills, decodes = await fleet(cluster)
    for fake in decodes:
        fake.does.break_after = 6
    await same(cluster, single, "tell me", **USAGE)
    sent = [body["kv_transfer_params"]["epd"]["sent"] for fake in decodes for body in fake.bodies("generate")]
    assert sorted(len(each) for each in sent) == [1, 6, 11]
    prefilled = [body["kv_transfer_params"]["epd"] for fake in prefills for body in fake.bodies("prefill")]
    assert sorted(len(each.get("sent", [])) for each in prefilled) == [0, 6, 11]


@pytest.mark.parametrize("way", STREAMS.values(), ids=STREAMS)
async def test_a_text_that_is_held_back_is_generated_anew(cluster, single, way):
    _, _, decodes = await fleet(cluster)
    for fake in decodes:
        break_off(fake, 4)  # the role, two tokens, and one without a text of its own
    await same(cluster, single, "half@3", **way, **LOGPROBS)


async def test_completions_go_on_too(cluster, single):
    _, _, decodes = await fleet(cluster)
    for fake in decodes:
        break_off(fake, 4)
    for way in STREAMS.values():
        got = await cluster.complete("tell me", headers=HEADERS, **way)
        compared(got, await single.complete("tell me", headers=HEADERS, **way), way)


async def test_one_instance_that_prefills_and_decodes_goes_on_for_another(cluster, single):
    fakes = [await cluster.add("PD", make=TokenInstance, epoch=f"p{index}") for index in range(2)]
    for fake in fakes:
        break_off(fake, 4)
    await same(cluster, single, "tell me", **USAGE)
    params = [body.get("kv_transfer_params") or {} for fake in fakes for body in fake.bodies("generate")]
    assert sorted(len(each.get("epd", {}).get("sent", [])) for each in params) == [0, 3, 6]


@pytest.mark.parametrize("fields", [{}, {"seed": 3}, {"n": 2, "seed": 3}], ids=["plain", "seeded", "choices"])
@pytest.mark.parametrize("stage", ["prefill", "decode"])
async def test_a_whole_answer_is_begun_again(cluster, fields, stage):
    _, prefills, decodes = await fleet(cluster)
    wanted = await cluster.chat("tell me", headers=HEADERS, **fields)
    for fake in prefills if stage == "prefill" else decodes:
        break_off(fake, 0)
    got = await cluster.chat("tell me", headers=HEADERS, **fields)
    assert (got.status, got.texts) == (200, wanted.texts)
    await cluster.nothing_held()


async def test_media_is_leased_anew_for_another_prefill(cluster, single):
    encode, prefills, _ = await fleet(cluster)
    for fake in prefills:
        break_off(fake, 0)
    await same(cluster, single, [text("see"), image("cat"), image("dog")], **USAGE)
    assert len(encode.seen) == 2, "nothing was encoded again"
    await cluster.nothing_held()


async def test_media_that_is_gone_is_encoded_again_for_another_prefill(cluster, single):
    encode, prefills, _ = await fleet(cluster)
    other = await cluster.add("E", limits={"pool_bytes": 10**6, "max_item_bytes": 1000}, epoch="e1")
    holds = prefills[0].does.hold = prefills[1].does.hold = asyncio.Event()
    asked = asyncio.create_task(same(cluster, single, [text("see"), image("cat")], **USAGE))
    await soon(lambda: any(fake.seen for fake in prefills))
    made = encode if encode.seen else other
    await made.stop()
    for fake in prefills:
        break_off(fake, 0)
    holds.set()
    for fake in prefills:
        fake.does.hold = None
    await asked
    assert len(encode.seen) + len(other.seen) == 2


async def test_an_error_event_in_mid_stream_is_no_end(cluster, single):
    _, _, decodes = await fleet(cluster)
    failed = []
    for fake in decodes:
        fail_once(fake, 5, failed)
    await same(cluster, single, "tell me", **USAGE)


def fail_once(fake, after, failed):
    """Have a stream tell of a failure in its middle, unless another one has."""
    events = fake._events

    async def then_fail(seen):
        sent = 0
        async for each in events(seen):
            if sent == after and not failed:
                failed.append(seen)
                yield b'data: {"error":{"message":"lost","type":"InternalServerError","param":null,"code":500}}\n\n'
                yield b"data: [DONE]\n\n"
                return
            sent += 1
            yield each

    fake._events = then_fail


async def test_another_model_version_never_goes_on(cluster):
    _, prefills, (chosen, spare) = await fleet(cluster)
    await cluster.remove(spare)
    for letters, base in (("P", P), ("D", D)):
        await cluster.add(letters, **{**base, "epoch": f"new{letters}"}, fingerprint=ANOTHER)
    chosen.does.gate = asyncio.Event()
    body = {"model": "tiny", "stream": True, "messages": [{"role": "user", "content": "tell me"}]}
    async with cluster.session.post(cluster.url + "/v1/chat/completions", json=body) as response:
        await response.content.readuntil(b"\n\n")
        await chosen.arrived.wait()
        await cluster.remove(chosen)
        for fake in prefills:
            await cluster.remove(fake)
        chosen.does.break_after = 3
        chosen.does.gate.set()
        rest = await response.content.read()
    assert b'"error"' in rest


async def test_a_penalty_ends_with_an_error_once_the_stream_has_begun(cluster):
    _, _, decodes = await fleet(cluster)
    for fake in decodes:
        break_off(fake, 4)
    *_, failed = (await cluster.chat("tell me", stream=True, presence_penalty=0.5)).events
    assert "broke off" in failed["error"]["message"]


async def test_a_new_start_of_an_instance_ends_the_calls_to_the_old_one(cluster, single):
    """As when the host of an instance is gone, so that no connection ever breaks."""
    _, _, decodes = await fleet(cluster)
    for fake in decodes:
        fake.does.hold = asyncio.Event()
    asked = asyncio.create_task(same(cluster, single, "tell me", **USAGE))
    await soon(lambda: any(fake.seen for fake in decodes))
    (busy,) = [fake for fake in decodes if fake.seen]
    busy.restart("another")
    for fake in decodes:
        fake.does.hold.set()
        fake.does.hold = None
    await cluster.register(busy)
    await asked


async def test_retries_are_bounded(cluster):
    _, prefills, decodes = await fleet(cluster)
    for fake in decodes:
        fake.does.break_after = 0
    assert (await cluster.chat("tell me")).status == 502
    assert sum(len(fake.seen) for fake in decodes) == 4
    await cluster.nothing_held()


async def test_a_client_s_mistake_is_not_tried_again(cluster):
    _, prefills, _ = await fleet(cluster)
    for fake in prefills:
        fake.does.status, fake.does.body = 400, {"error": {"message": "no", "code": 400}}
    assert (await cluster.chat("tell me")).status == 400
    assert sum(len(fake.seen) for fake in prefills) == 1


async def test_work_goes_round_an_instance_that_fails_and_comes_back(cluster, clock):
    _, (bad, good), _ = await fleet(cluster)
    bad.does.break_after = 0
    for _ in range(8):
        assert (await cluster.chat("tell me")).status == 200
    assert len(bad.seen) == 3
    bad.does.break_after = None
    clock.now += 2.0
    for fake in (bad, good):
        await cluster.register(fake)
    for _ in range(4):
        assert (await cluster.chat("tell me")).status == 200
    assert len(bad.seen) > 3
