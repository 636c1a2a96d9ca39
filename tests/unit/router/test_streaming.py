# SPDX-License-Identifier: Apache-2.0
"""Streams pass as they come; broken ones end with an error that the client can read."""

import asyncio
import json

import pytest

from tests.unit.router.conftest import soon

TOPOLOGIES = [("EPD",), ("PD",), ("P", "D")]


@pytest.fixture(params=TOPOLOGIES, ids="+".join)
async def last(cluster, request):
    """The instance that generates, in each topology."""
    return (await cluster.up(*request.param))[-1]


async def _open(cluster, **fields):
    body = {"model": "tiny", "stream": True, "messages": [{"role": "user", "content": "x"}], **fields}
    return await cluster.session.post(cluster.url + "/v1/chat/completions", json=body)


async def test_the_first_chunk_arrives_before_the_second_is_sent(cluster, last):
    last.does.words = ["one", "two"]
    last.does.gate = asyncio.Event()
    async with await _open(cluster) as response:
        first = await asyncio.wait_for(response.content.readuntil(b"\n\n"), 20)
        assert b'"one "' in first
        assert last.seen[0].outcome == "running"
        last.does.gate.set()
        assert b'"two"' in await response.content.read()


async def test_a_stream_of_one_choice_is_not_touched(cluster, last):
    events = b'data: {"id":"x",  "choices":[]}\n\n: keep-alive\n\ndata: {"odd" : "\xc3\xa4"}\n\n'
    last.does.first_event = events
    last.does.words = []
    async with await _open(cluster) as response:
        assert await response.read() == events + b"data: [DONE]\n\n"


async def test_a_stream_that_breaks_ends_with_an_error_and_is_closed(cluster, last):
    last.does.words = ["one", "two", "three"]
    last.does.break_after = 2
    answer = await cluster.chat("x", stream=True)
    assert answer.status == 200
    *words, failed = answer.events
    assert [event["choices"][0]["delta"]["content"] for event in words] == ["one ", "two "]
    assert failed["error"]["code"] == 502
    assert f"decode instance {last.instance_id} broke off" in failed["error"]["message"]


async def test_half_an_event_is_never_passed_on(cluster, last):
    last.does.words = ["one"]
    last.does.first_event = b'data: {"choices":[]}\n\ndata: {"cho'
    last.does.break_after = 1
    async with await _open(cluster) as response:
        first, failed, closing = (await response.read()).split(b"\n\n")[:3]
    assert first == b'data: {"choices":[]}'
    assert json.loads(failed.removeprefix(b"data: "))["error"]["code"] == 502
    assert closing == b"data: [DONE]"


async def test_a_stream_that_ends_before_its_end(cluster, last):
    last.does.first_event = b'data: {"choices":[]}\n\ndata: [DONE]\n\nX'
    last.does.words = []

    async def cut_short(seen):
        yield b'data: {"choices":[]}\n\n'

    last._events = cut_short
    answer = await cluster.chat("x", stream=True)
    assert "ended its stream too early" in answer.events[-1]["error"]["message"]


@pytest.mark.parametrize(("code", "status"), [(503, 503), (400, 400), (None, 502), (200, 502)])
async def test_a_stream_that_begins_with_an_error_has_its_status(cluster, last, code, status):
    last.does.first_event = b"data: " + json.dumps({"error": {"message": "lost", "code": code}}).encode() + b"\n\n"
    answer = await cluster.chat("x", stream=True)
    assert answer.status == status
    assert answer.error == {"message": "lost", "code": code}


async def test_a_failure_right_after_the_role_has_its_status(cluster, last):
    role = b'data: {"choices":[{"index":0,"delta":{"role":"assistant","content":""}}]}\n\n'
    last.does.words = []
    last.does.first_event = role
    plain = last._events

    async def lost(seen):
        async for event in plain(seen):
            if b"DONE" in event:
                await asyncio.sleep(0.01)
                yield b'data: {"error":{"message":"lost","code":500}}\n\n'
            yield event

    last._events = lost
    answer = await cluster.chat("x", stream=True)
    assert (answer.status, answer.error["message"]) == (500, "lost")
    last._events = plain
    assert (await cluster.chat("x", stream=True)).raw == role + b"data: [DONE]\n\n"


async def test_an_instance_that_breaks_before_the_first_event_has_a_status(cluster, last):
    last.does.gate = asyncio.Event()
    last.does.first_event = b"data: {"
    last.does.break_after = 1
    answer = await cluster.chat("x", stream=True)
    assert answer.status == 502


async def test_a_slow_client_holds_its_instance_back(cluster, last):
    last.does.words = ["w" * 2**16] * 400
    async with await _open(cluster) as response:
        await soon(lambda: last.seen)
        await asyncio.sleep(0.3)
        assert last.seen[0].outcome == "running"
        assert len(await response.read()) > 400 * 2**16
    assert last.seen[0].outcome == "answered"


async def test_the_stream_says_whose_it_is(cluster, last):
    answer = await cluster.chat("x", stream=True, headers={"X-Request-Id": "abc"})
    assert answer.headers["X-Request-Id"] == "abc"
    assert answer.headers["Content-Type"] == "text/event-stream; charset=utf-8"
    assert answer.headers["Cache-Control"] == "no-cache"
    assert {event["id"] for event in answer.events} == {"chatcmpl-abc"}
