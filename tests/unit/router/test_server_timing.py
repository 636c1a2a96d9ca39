# SPDX-License-Identifier: Apache-2.0
"""The header that tells a client what the time of its request went to."""

import asyncio
import re

import pytest

from tests.unit.router.conftest import answers_after, hold, image, soon
from tests.unit.router.test_first_token import D, P
from tests.unit.router.test_recovery import break_off

ONE = {"max_num_seqs": 1}
_METRIC = re.compile(r'(\w+);dur=([0-9.]+)(?:;desc="([^"]+)")?')


def timing(answer):
    """The milliseconds of each part."""
    return {name: float(ms) for name, ms, _ in _METRIC.findall(answer.headers["Server-Timing"])}


async def asked(cluster, clock, *fakes, content="words", **fields):
    """The answer to a request that takes a second at the first instance, two at the next one, and so on."""
    hold(*fakes)
    task = asyncio.create_task(cluster.chat(content, **fields))
    for index, fake in enumerate(fakes):
        await answers_after(clock, fake, 2.0**index)
    return await task


async def test_every_stage_has_its_time(cluster, clock):
    fakes = await cluster.up("E", "P", "D")
    answer = await asked(cluster, clock, *fakes, content=[image("cat")])
    assert timing(answer) == {
        "receive": 0,
        "route": 0,
        "encode_queue": 0,
        "encode": 1000,
        "prefill_queue": 0,
        "prefill": 2000,
        "decode_queue": 0,
        "decode": 4000,
        "total": 7000,
    }


async def test_text_has_no_time_at_encoders(cluster, clock):
    _, *pair = await cluster.up("E", "P", "D")
    found = timing(await asked(cluster, clock, *pair))
    assert (found["prefill"], found["decode"]) == (1000, 2000)
    assert not {"encode", "encode_queue"} & found.keys()


async def test_one_instance_that_does_all_waits_as_for_prefill(cluster, clock):
    found = timing(await asked(cluster, clock, *await cluster.up("EPD")))
    assert found == {"receive": 0, "route": 0, "prefill_queue": 0, "decode": 1000, "total": 1000}


async def test_a_stream_tells_what_is_known_at_its_first_token(cluster, clock):
    prefill, decode = await cluster.up("P", "D")
    decode.does.words, decode.does.gate = ["one", "two"], asyncio.Event()
    hold(prefill, decode)
    body = {"model": "tiny", "stream": True, "messages": [{"role": "user", "content": "x"}]}
    opening = asyncio.create_task(cluster.session.post(cluster.url + "/v1/chat/completions", json=body))
    await answers_after(clock, prefill, 1.0)
    await answers_after(clock, decode, 2.0)
    async with await opening as response:
        clock.now += 1.0
        decode.does.gate.set()
        await response.read()
    assert timing(response)["prefill"] == 1000
    assert 'decode;dur=2000.0;desc="until the first token", total;dur=3000.0' in response.headers["Server-Timing"]


async def test_a_stream_that_prefill_begins_knows_nothing_of_decode(cluster, clock):
    prefill, decode = await cluster.add("P", **P), await cluster.add("D", **D)
    found = timing(await asked(cluster, clock, prefill, decode, stream=True))
    assert found == {"receive": 0, "route": 0, "prefill_queue": 0, "prefill": 1000, "total": 1000}


async def test_waiting_is_told_apart_from_work(cluster, clock):
    whole = await cluster.add("EPD", limits=ONE)
    hold(whole)
    first = asyncio.create_task(cluster.chat("first"))
    await whole.arrived.wait()
    second = asyncio.create_task(cluster.chat("second"))
    while not await cluster.metric('waiting{stage="prefill"}'):
        await asyncio.sleep(0.001)
    await answers_after(clock, whole, 2.0)
    await first
    found = timing(await second)
    assert (found["prefill_queue"], found["decode"], found["total"]) == (2000, 0, 2000)
    assert await cluster.metric('waited_seconds_sum{stage="prefill"}') == 2.0
    assert await cluster.metric('waited_seconds_count{stage="prefill"}') == 2.0


async def test_tries_add_up(cluster, clock):
    fakes = await cluster.up("P", "P")
    await cluster.up("D")
    hold(*fakes)
    for fake in fakes:
        break_off(fake, 0)
    task = asyncio.create_task(cluster.chat("words"))
    await soon(lambda: any(fake.seen for fake in fakes))
    one, other = sorted(fakes, key=lambda fake: -len(fake.seen))
    other.does.break_after = None
    await answers_after(clock, one, 1.0)
    await answers_after(clock, other, 2.0)
    answer = await task
    assert answer.status == 200
    assert timing(answer)["prefill"] == 3000
    assert "backoff" in timing(answer)


async def test_choices_at_the_same_time_count_once(cluster, clock):
    prefill, decode = await cluster.up("P", "D")
    hold(decode)
    task = asyncio.create_task(cluster.chat("words", n=3))
    await soon(lambda: len(decode.seen) == 3)
    await answers_after(clock, decode, 2.0)
    found = timing(await task)
    assert (found["decode"], found["total"]) == (2000, 2000)
    assert len(prefill.seen) == 3


@pytest.mark.parametrize(
    ("body", "status", "known"),
    [
        ({"model": "tiny"}, 400, {"receive", "total"}),
        ({"model": "other", "messages": []}, 404, {"receive", "route", "total"}),
    ],
    ids=str,
)
async def test_errors_carry_it_too(cluster, body, status, known):
    await cluster.up("EPD")
    answer = await cluster.call("POST", "/v1/chat/completions", body)
    assert answer.status == status
    assert timing(answer).keys() == known


async def test_the_failure_of_an_instance_carries_its_time(cluster, clock):
    (whole,) = await cluster.up("EPD")
    whole.does.status = 400
    answer = await asked(cluster, clock, whole)
    assert (answer.status, timing(answer)["decode"]) == (400, 1000)


async def test_what_is_no_request_for_an_answer_has_no_times(cluster):
    for path in ("/health", "/v1/models", "/metrics", "/nowhere"):
        assert "Server-Timing" not in (await cluster.call("GET", path)).headers
