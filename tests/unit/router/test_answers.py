# SPDX-License-Identifier: Apache-2.0
"""What is looked for in an instance's answer."""

import json

import pytest

from vllm_epd.errors import UpstreamError
from vllm_epd.router.answers import (
    clean_answer,
    decode_answer,
    handed_over,
    opening_failure,
    says_nothing,
)
from vllm_epd.router.sse import event


@pytest.mark.parametrize(
    "raw",
    [
        b'{"choices":[{"finish_reason":"stop"}],"kv_transfer_params":null,"ec_transfer_params": null}',
        json.dumps({"text": 'say "kv_transfer_params": {} and "finish_reason": "error"'}).encode(),
        b"not even JSON",
    ],
)
def test_an_answer_with_nothing_to_hide_is_the_same_object(raw):
    assert clean_answer(raw, "decode") is raw


@pytest.mark.parametrize("name", ["kv_transfer_params", "ec_transfer_params"])
@pytest.mark.parametrize("space", ["", " ", "\n  "])
def test_transfer_parameters_become_null(name, space):
    raw = f'{{"a":1.5,"{name}"{space}:{space}{{"remote_host":"x"}}}}'.encode()
    assert json.loads(clean_answer(raw, "decode")) == {"a": 1.5, name: None}


def test_a_failed_choice_is_a_failure():
    raw = b'{"choices":[{"finish_reason":"stop"},{"finish_reason": "error"}]}'
    with pytest.raises(UpstreamError) as caught:
        clean_answer(raw, "decode")
    assert (caught.value.status, caught.value.stage) == (502, "decode")


@pytest.mark.parametrize("raw", [b"", b"<html>", b"[]", b"3"])
def test_an_answer_must_be_an_object(raw):
    with pytest.raises(UpstreamError, match="the prefill instance answered with"):
        decode_answer(raw, "prefill")


@pytest.mark.parametrize("blocks", [[1, 2], [[1], []], [[0]]])
def test_handed_over(blocks):
    params = {"remote_block_ids": blocks, "opaque": {"x": 1}}
    assert handed_over({"kv_transfer_params": params}, "p:1") is params


@pytest.mark.parametrize("blocks", [None, [], [[]], [[], []], "12", 5])
def test_not_handed_over(blocks):
    with pytest.raises(UpstreamError, match="p:1 did not hand over its KV cache"):
        handed_over({"kv_transfer_params": {"remote_block_ids": blocks}}, "p:1")


ROLE = b'{"id":"x","choices":[{"index":0,"delta":{"role":"assistant","content":""},"logprobs":null}]}'
WORD = b'{"id":"x","choices":[{"index":0,"delta":{"content":"a"}}]}'


@pytest.mark.parametrize(("error", "status"), [({"code": 400}, 400), ({"code": 700}, 502), ("text", 502)])
@pytest.mark.parametrize("before", [b"", event(ROLE), event(ROLE) * 3])
def test_a_failure_at_the_start_has_the_status_that_it_names(error, status, before):
    data = json.dumps({"error": error}).encode()
    told = opening_failure(before + event(data), "d:1")
    assert (told.status, told.body, told.stage) == (status, data, "decode")


@pytest.mark.parametrize("events", [b"", event(ROLE), event(WORD), event(WORD) + event(b'{"error":{}}'), event(b"x")])
def test_no_failure_at_the_start(events):
    assert opening_failure(events, "d:1") is None


@pytest.mark.parametrize(
    ("events", "nothing"),
    [
        (event(ROLE), True),
        (event(ROLE) + event(ROLE), True),
        (event(b'{"choices":[{"index":0,"text":"","finish_reason":null}]}'), True),
        (event(WORD), False),
        (event(ROLE) + event(WORD), False),
        (event(b'{"choices":[{"index":0,"delta":{"tool_calls":[{}]}}]}'), False),
        (event(b'{"choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}'), False),
        (event(b'{"choices":[{"index":0,"text":"","token_ids":[3]}]}'), False),
        (event(b'{"choices":[],"usage":{}}'), False),
        (event(b"no JSON"), False),
        (event(b'{"choices":[3]}'), False),
        (b": keep-alive\n\n", False),
        (b"", False),
    ],
)
def test_what_says_nothing(events, nothing):
    assert says_nothing(events) is nothing
