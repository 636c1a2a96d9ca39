# SPDX-License-Identifier: Apache-2.0
"""One line of JSON for each request for an answer, and the request's id wherever something is done for it."""

import asyncio
import json
import logging
from datetime import UTC, datetime

import pytest

from tests.unit.router.conftest import answers_after, hold, image, sized, soon, text
from tests.unit.router.test_first_token import D, P
from tests.unit.router.test_recovery import break_off
from vllm_epd.errors import ConfigError
from vllm_epd.router import access

LOGGER = "vllm_epd.router.access"
HEADERS = {"X-Request-Id": "abc"}


@pytest.fixture
def lines(caplog):
    """What the access log has so far."""
    caplog.set_level(logging.INFO, LOGGER)
    return lambda: [json.loads(each.message) for each in caplog.records if each.name == LOGGER]


async def line(lines):
    """The only line, once it is there."""
    await soon(lines)
    (found,) = lines()
    return found


async def test_a_request_through_all_stages(cluster, clock, lines):
    encode, prefill, decode = await cluster.up("E", "P", "D")
    hold(encode, prefill, decode)
    task = asyncio.create_task(cluster.chat([image("cat"), image("dog")], headers=HEADERS))
    for fake, seconds in ((encode, 1.0), (prefill, 0.5), (decode, 0.25)):
        await answers_after(clock, fake, seconds)
    usage = (await task).json["usage"]
    found = await line(lines)
    assert abs((datetime.now(UTC) - datetime.fromisoformat(found.pop("time"))).total_seconds()) < 60
    times = found.pop("seconds")
    assert (times["encode"], times["prefill"], times["decode"], times["decode_queue"]) == (1.0, 0.5, 0.25, 0.0)
    assert found == {
        "request_id": "abc",
        "api": "/v1/chat/completions",
        "model": "tiny",
        "status": 200,
        "stream": False,
        "prompts": 1,
        "choices": 1,
        "media": 2,
        "media_tokens": [["image", 1337], ["image", 1337]],
        "media_sizes": [None, None],
        "text_tokens": 0.0,
        "prompt_tokens": usage["prompt_tokens"],
        "completion_tokens": usage["completion_tokens"],
        "instances": {
            "encode": [encode.instance_id],
            "prefill": [prefill.instance_id],
            "decode": [decode.instance_id],
        },
        "total_s": 1.75,
        "ttft_s": None,
        "target_s": None,
        "retries": {},
        "reason": None,
        "error": None,
    }


async def test_a_stream_that_went_on_elsewhere(cluster, lines):
    prefill = await cluster.add("P", **P)
    decodes = [await cluster.add("D", **{**D, "epoch": f"d{index}"}) for index in range(2)]
    for fake in decodes:
        break_off(fake, 4)
    headers = {**HEADERS, "X-Request-TTFT-SLO-Ms": "1500"}
    answer = await cluster.chat("tell me", stream=True, headers=headers, stream_options={"include_usage": True})
    found = await line(lines)
    assert (found["status"], found["stream"], found["reason"]) == (200, True, None)
    assert (found["ttft_s"], found["target_s"]) == (0.0, 1.5)
    assert found["retries"] == {"decode": 2}
    assert found["instances"]["prefill"] == [prefill.instance_id]
    assert set(found["instances"]["decode"]) == {fake.instance_id for fake in decodes}
    assert "backoff" in found["seconds"]
    assert found["completion_tokens"] == answer.events[-1]["usage"]["completion_tokens"]


async def test_a_stream_that_failed_says_why_beside_its_status(cluster, lines):
    (whole,) = await cluster.up("EPD")
    whole.does.words, whole.does.break_after = ["one", "two"], 1
    await cluster.chat("words", stream=True, headers=HEADERS)
    found = await line(lines)
    assert (found["status"], found["reason"]) == (200, "BrokenOffError")
    assert whole.instance_id in found["error"]


@pytest.mark.parametrize(
    ("raw", "status", "reason"),
    [
        (b"{", 400, "BadRequestError"),
        (b'{"model": "other", "messages": []}', 404, "UnknownModelError"),
        (b" " * 2000, 413, "BodyTooLargeError"),
    ],
    ids=["no JSON", "unknown model", "too large"],
)
async def test_a_request_that_is_refused(cluster_with, lines, raw, status, reason):
    async with cluster_with(max_body_bytes=1000) as cluster:
        await cluster.up("EPD")
        headers = {**HEADERS, "Content-Type": "application/json"}
        answer = await cluster.call("POST", "/v1/chat/completions", data=raw, headers=headers)
        found = await line(lines)
        assert (answer.status, found["status"], found["reason"]) == (status, status, reason)
        assert found["instances"] == {}


async def test_what_was_seen_of_media_before_it_was_encoded(cluster, lines):
    await cluster.up("EPD")
    audio = {"type": "input_audio", "input_audio": {"data": "A" * 4000, "format": "mp3"}}
    await cluster.chat([text("what is this"), sized(280, 56), audio], headers=HEADERS)
    found = await line(lines)
    assert (found["media_tokens"], found["media_sizes"]) == ([["image", 20], ["audio", 5]], [[280, 56], None])
    assert found["text_tokens"] == 3.0


async def test_a_client_that_leaves(cluster, lines):
    (whole,) = await cluster.up("EPD")
    hold(whole)
    task = asyncio.create_task(cluster.chat("words", headers=HEADERS))
    await whole.arrived.wait()
    task.cancel()
    found = await line(lines)
    assert (found["request_id"], found["status"], found["reason"]) == ("abc", 499, None)
    assert "decode" in found["seconds"]


async def test_nothing_is_written_of_other_requests(cluster, lines):
    await cluster.up("EPD")
    await cluster.call("GET", "/health")
    await cluster.call("GET", "/nowhere")
    await cluster.chat("words")
    assert len(lines()) == 1


async def test_a_long_message_is_cut(cluster, lines):
    await cluster.up("EPD")
    await cluster.chat("words", model="m" * 5000)
    assert len((await line(lines))["error"]) == 300


async def test_transfers_and_what_is_told_of_them_carry_the_id(cluster):
    prefill, decode = await cluster.add("P", **P), await cluster.add("D", **D)
    await cluster.chat("words", headers={"X-Request-Id": "abc" * 100})
    (offer,) = [body["kv_transfer_params"]["epd"]["offer"] for body in prefill.bodies("prefill")]
    name, secret = offer.rsplit("-", 1)
    assert name == ("abc" * 100)[:64]
    assert len(secret) == 32
    told = [seen.request_id for what, seen in decode.kv_calls if what == "expect"]
    assert told == ["abc" * 100]


async def test_a_call_in_the_background_that_fails_is_logged_with_the_id(cluster, caplog):
    caplog.set_level(logging.INFO, "vllm_epd.router.calls")
    await cluster.add("P", **P)
    decode = await cluster.add("D", **D)
    decode.does.kv_status = 500
    await cluster.chat("words", headers=HEADERS)
    wanted = f"request abc: {decode.instance_id} could not be told /epd/kv/expect"
    await soon(lambda: any(wanted in each.message for each in caplog.records))


@pytest.fixture
def as_it_was():
    logger = logging.getLogger(LOGGER)
    before = logger.level, logger.propagate, list(logger.handlers)
    yield logger
    for handler in logger.handlers:
        if handler not in before[2]:
            handler.close()
    logger.level, logger.propagate, logger.handlers = before


async def test_lines_go_to_a_file_that_may_be_moved_away(cluster, tmp_path, as_it_was):
    file = tmp_path / "access.jsonl"
    access.open_access_log(str(file))
    await cluster.up("EPD")
    await cluster.chat("words", headers=HEADERS)
    file.rename(tmp_path / "access.1")
    await cluster.chat("words", headers={"X-Request-Id": "next"})
    written = [json.loads((tmp_path / name).read_text())["request_id"] for name in ("access.1", "access.jsonl")]
    assert written == ["abc", "next"]


async def test_nothing_is_written_unless_asked_for(cluster, caplog, as_it_was):
    caplog.set_level(logging.INFO)
    access.open_access_log(None)
    await cluster.up("EPD")
    await cluster.chat("words")
    assert [each for each in caplog.records if each.name == LOGGER] == []


def test_a_file_that_cannot_be_written_is_refused(tmp_path, as_it_was):
    with pytest.raises(ConfigError, match="access_log .*nowhere/log cannot be written: "):
        access.open_access_log(str(tmp_path / "nowhere" / "log"))
