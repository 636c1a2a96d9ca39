# SPDX-License-Identifier: Apache-2.0
"""What the steps of a request leave to each other."""

import asyncio
import json

import pytest

from tests.unit.router.conftest import image
from vllm_epd.errors import UpstreamError
from vllm_epd.router.choices import StreamMerger
from vllm_epd.router.context import RequestContext
from vllm_epd.router.media import EncodedItem
from vllm_epd.router.requests import Api, parse_request
from vllm_epd.router.sinks import CollectingSink, MergingSink
from vllm_epd.router.sse import event

ONE, TWO = EncodedItem("h1", "image", {}), EncodedItem("h2", "image", {})


def context(*content):
    raw = json.dumps({"messages": [{"role": "user", "content": list(content)}]}).encode()
    return RequestContext(
        services=None, request=parse_request(Api.CHAT, raw), request_id="abc", headers={"A": "1"}, sink=None
    )


def test_media_counts_as_encoded_once_all_of_it_is():
    ctx = context(image("cat"), image("dog"))
    assert ctx.encoded is None
    ctx.items[1] = TWO
    assert ctx.encoded is None
    ctx.items[0] = ONE
    assert ctx.encoded == [ONE, TWO]


def test_text_has_nothing_to_encode():
    assert context("hi").encoded == []


def test_an_instance_is_told_the_id_of_its_stage():
    assert context("hi").headers_for("-e0") == {"A": "1", "X-Request-Id": "abc-e0"}


def test_there_is_no_way_before_it_is_planned():
    with pytest.raises(RuntimeError, match="no route yet"):
        _ = context("hi").planned


class SlowSink:
    started = False

    def __init__(self):
        self.blocks = []
        self.at_work = 0

    async def events(self, events):
        self.at_work += 1
        assert self.at_work == 1
        await asyncio.sleep(0.001)
        self.blocks.append(events)
        self.at_work -= 1


async def test_branches_pass_on_one_block_at_a_time():
    target, merger, lock = SlowSink(), StreamMerger("id", n=3), asyncio.Lock()
    sinks = [MergingSink(target, merger, lock, index) for index in range(3)]
    chunk = event(b'{"choices":[{"index":0}]}')
    await asyncio.gather(*(sink.events(chunk) for sink in sinks for _ in range(3)))
    assert len(target.blocks) == 9


async def test_the_end_of_one_branch_is_not_the_end_of_the_stream():
    target = SlowSink()
    await MergingSink(target, StreamMerger("id", n=2), asyncio.Lock(), 0).events(b"data: [DONE]\n\n")
    assert target.blocks == []


async def test_an_answer_of_the_other_kind_is_a_failure():
    with pytest.raises(UpstreamError, match="streamed unasked"):
        await CollectingSink().events(b"data: 1\n\n")
    with pytest.raises(UpstreamError, match="did not stream"):
        await MergingSink(SlowSink(), StreamMerger("id", n=2), asyncio.Lock(), 0).body(b"{}")


async def test_a_branch_that_tells_of_an_error_fails_with_it():
    sink = MergingSink(SlowSink(), StreamMerger("id", n=2), asyncio.Lock(), 0)
    with pytest.raises(UpstreamError) as caught:
        await sink.events(event(b'{"error":{"message":"lost"}}'))
    assert caught.value.body == b'{"error":{"message":"lost"}}'
