# SPDX-License-Identifier: Apache-2.0
"""What is looked for in an instance's answer."""

import json

import pytest

from vllm_epd.errors import UpstreamError
from vllm_epd.router.answers import clean_answer, decode_answer, failure, handed_over


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


@pytest.mark.parametrize(("error", "status"), [({"code": 400}, 400), ({"code": 700}, 502), ("text", 502)])
def test_a_failure_has_the_status_that_it_names(error, status):
    data = json.dumps({"error": error}).encode()
    told = failure(data, "decode", "d:1")
    assert (told.status, told.body) == (status, data)
