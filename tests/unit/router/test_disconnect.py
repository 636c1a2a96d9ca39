# SPDX-License-Identifier: Apache-2.0
"""A client that leaves takes its work along, at whatever stage it is."""

import asyncio

import pytest

from tests.unit.router.conftest import image, soon

STAGES = {"encode": 0, "prefill": 1, "decode": 2}


async def _leave(asked):
    asked.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asked


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("stream", [False, True])
async def test_the_stage_at_work_is_aborted_and_no_later_one_is_asked(cluster, stage, stream):
    fakes = await cluster.up("E", "P", "D")
    at_work = fakes[STAGES[stage]]
    at_work.does.hold = asyncio.Event()
    asked = asyncio.create_task(cluster.chat([image("cat")], stream=stream))
    await at_work.arrived.wait()
    await _leave(asked)
    await soon(lambda: at_work.seen[0].outcome == "aborted")
    assert all(later.seen == [] for later in fakes[STAGES[stage] + 1 :])
    await soon(lambda: [cluster.instance(each).outstanding for each in fakes] == [0, 0, 0])


async def test_all_items_being_encoded_are_aborted(cluster):
    one, other, _, _ = await cluster.up("E", "E", "P", "D")
    one.does.hold = other.does.hold = asyncio.Event()
    asked = asyncio.create_task(cluster.chat([image("cat"), image("dog"), image("bird")]))
    await soon(lambda: len(one.seen) + len(other.seen) == 3)
    await _leave(asked)
    await soon(lambda: {seen.outcome for seen in (*one.seen, *other.seen)} == {"aborted"})


@pytest.mark.parametrize("letters", [("EPD",), ("PD",), ("P", "D")], ids="+".join)
async def test_a_client_that_leaves_a_stream(cluster, letters):
    last = (await cluster.up(*letters))[-1]
    last.does.words = ["one", "two"]
    last.does.gate = asyncio.Event()
    body = {"model": "tiny", "stream": True, "messages": [{"role": "user", "content": "x"}]}
    response = await cluster.session.post(cluster.url + "/v1/chat/completions", json=body)
    await response.content.readuntil(b"\n\n")
    response.close()
    await soon(lambda: last.seen[0].outcome == "aborted")
    assert cluster.instance(last).outstanding == 0


async def test_all_choices_are_aborted(cluster):
    prefill, decode = await cluster.up("P", "D")
    decode.does.hold = asyncio.Event()
    asked = asyncio.create_task(cluster.chat("x", n=3))
    await soon(lambda: len(decode.seen) == 3)
    await _leave(asked)
    await soon(lambda: [seen.outcome for seen in decode.seen] == ["aborted"] * 3)


async def test_a_client_that_left_is_counted_as_such(cluster):
    (whole,) = await cluster.up("EPD")
    whole.does.hold = asyncio.Event()
    asked = asyncio.create_task(cluster.chat("x"))
    await whole.arrived.wait()
    await _leave(asked)
    await soon(lambda: whole.seen[0].outcome == "aborted")
    shown = (await cluster.call("GET", "/metrics")).raw.decode()
    assert 'vllm_epd_router_requests_total{route="/v1/chat/completions",status="499"} 1.0' in shown
    assert "vllm_epd_router_in_flight 1.0" in shown  # the request that asks
