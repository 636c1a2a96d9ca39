# SPDX-License-Identifier: Apache-2.0
"""Long data is cut out of a body as it arrives, and comes back byte for byte wherever it goes."""

import base64
import io
import json
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from tests.unit.router.conftest import text
from vllm_epd.router import jsonio
from vllm_epd.router.costs import Means
from vllm_epd.router.demand import estimate
from vllm_epd.router.inline import NOTHING, SHORTEST, Cutter
from vllm_epd.router.requests import Api, encode_body, parse_request

LONG = base64.b64encode(Random(1).randbytes(SHORTEST)).decode()
OTHER = base64.b64encode(Random(2).randbytes(SHORTEST)).decode()


def cut(raw, *sizes):
    """Feed a body in chunks of these sizes, the last one over and over."""
    cutter, at, left = Cutter(), 0, list(sizes)
    while at < len(raw):
        size = left.pop(0) if len(left) > 1 else left[0]
        cutter.feed(raw[at : at + size])
        at += size
    return cutter.close()


def image(data, head="data:image/png;base64,"):
    return {"type": "image_url", "image_url": {"url": head + data, "detail": "low"}}


def audio(data):
    return {"type": "input_audio", "input_audio": {"data": data, "format": "wav"}}


def chat(*content, **fields):
    return {"model": "tiny", "messages": [{"role": "user", "content": list(content)}], **fields}


def received(body, *sizes, dump=json.dumps):
    return parse_request(Api.CHAT, *cut(dump(body).encode(), *(sizes or (2**16,))))


@pytest.mark.parametrize("sizes", [(2**20,), (2**16,), (1000,), (7, 2**20), (83, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 900)])
def test_what_is_cut_out_reaches_the_encoder_and_is_parsed_by_nobody(sizes):
    body = chat(image(LONG), text("and"), audio(OTHER), image("short"))
    request = received(body, *sizes)
    assert len(request.inline.data) == 2
    assert len(request.raw) < 1000
    for media, part in zip(request.media, (image(LONG), audio(OTHER), image("short")), strict=True):
        sent = json.loads(b"".join(request.written(encode_body(request, media, "offer"))))
        assert sent["messages"] == [{"role": "user", "content": [part]}]


@given(sizes=st.lists(st.integers(1, 60_000), min_size=1, max_size=40))
@settings(max_examples=60, deadline=None)
def test_the_whole_comes_back_however_it_is_chunked(sizes):
    raw = json.dumps(chat(image(LONG), text('say ;base64, "and" \\ so on'), audio(OTHER), image("x" * 100))).encode()
    rest, inline = cut(raw, *sizes)
    assert b"".join(inline.filled(rest)) == raw
    assert len(inline.data) == 2


@pytest.mark.parametrize("space", ["", " ", "  "])
def test_json_may_have_spaces(space):
    raw = json.dumps(chat(audio(LONG)), separators=("," + space, ":" + space)).encode()
    assert len(cut(raw, 2**20)[1].data) == 1


def test_short_data_stays_where_it_is():
    raw = json.dumps(chat(image("a" * (SHORTEST - 1)), *[image("b")] * 5000)).encode()
    assert cut(raw, 2**20) == (raw, NOTHING)


def test_data_that_json_escapes_is_parsed_like_any_other():
    def slashes(body):
        return json.dumps(body).replace("/", "\\/")

    data = LONG.replace("A", "/")
    request = received(chat(image(data)), dump=slashes)
    assert not request.inline
    assert request.body["messages"][0]["content"] == [image(data)]


@pytest.mark.parametrize(
    "body",
    [
        chat(text("data:image/png;base64," + LONG)),
        chat(image(OTHER), text(";base64," + LONG)),
        chat(image(OTHER), documents=[{"data": LONG}]),
        chat(image(OTHER) | {"audio_url": {"url": "data:audio/wav;base64," + LONG}}),
    ],
)
def test_what_is_no_data_of_a_media_part_is_not_kept_apart(body):
    request = received(body)
    assert not request.inline
    assert request.body == body


def test_what_is_wrong_with_a_body_is_said_of_the_body_that_came():
    raw = json.dumps(chat(image(LONG))).encode()[:-2] + b",}"
    with pytest.raises(ValueError, match="byte") as expected:
        jsonio.decode(raw)
    with pytest.raises(Exception, match="is not valid JSON") as found:
        parse_request(Api.CHAT, *cut(raw, 2**20))
    assert str(expected.value) in str(found.value)


def test_a_body_that_ends_within_data_is_whole_again():
    raw = json.dumps(chat(image(LONG))).encode()[:-100]
    assert cut(raw, 5000) == (raw, NOTHING)


def test_a_client_cannot_name_what_another_one_sent():
    first, second = (received(chat(image(LONG))) for _ in range(2))
    assert first.inline.mark != second.inline.mark


@pytest.mark.parametrize("size", [7, 1000, 10**6])
def test_what_is_cut_out_is_estimated_as_if_it_were_there(size):
    noise = Random(3).randbytes(3 * 200 * 100)
    file = io.BytesIO()
    Image.frombytes("RGB", (200, 100), noise).save(file, "PNG")
    data = base64.b64encode(file.getvalue()).decode()
    body = chat(image(data), audio(LONG), text("hi"))
    raw, inline = cut(json.dumps(body).encode(), size)
    assert inline
    request, whole = parse_request(Api.CHAT, raw, inline), parse_request(Api.CHAT, json.dumps(body).encode())
    assert estimate(request, Means(), named=False) == estimate(whole, Means(), named=False)
    assert request.nbytes == pytest.approx(whole.nbytes, abs=200)


def test_equal_prompts_are_told_from_others_whatever_their_marks_are():
    def names(data):
        raw, inline = cut(json.dumps(chat(image(data), text("hi " * 1000))).encode(), 1000)
        return estimate(parse_request(Api.CHAT, raw, inline), Means(), named=True).names(0)

    assert names(LONG) == names(LONG) != names(OTHER)
