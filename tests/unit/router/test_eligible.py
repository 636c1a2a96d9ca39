# SPDX-License-Identifier: Apache-2.0
"""Which requests may go on from a first token of another instance: field by field."""

import dataclasses
import json

import pytest

from tests.unit.router.test_pools import ENCODER
from vllm_epd.router import fields, first_token
from vllm_epd.router.first_token import may_resume
from vllm_epd.router.instances import Instance
from vllm_epd.router.requests import Api, parse_request

CAN = Instance(dataclasses.replace(ENCODER, limits={"resume": 1}), 0.0)
CHAT = {"messages": [{"role": "user", "content": "x"}]}
NONE = dict.fromkeys(["tools", "structured_outputs", "response_format", "stop", "seed", "min_tokens", "bad_words"])

EITHER_MAY = [
    {},
    {"temperature": 0},
    {"temperature": 0.7, "top_p": 0.9, "top_k": 4, "min_p": 0.1},
    {"seed": 4, "temperature": 0},
    {"seed": 4, "temperature": 0.0},
    {"repetition_penalty": 1.3},
    {"logit_bias": {"7": 5}, "allowed_token_ids": [7]},
    {"stop_token_ids": [7], "include_stop_str_in_output": True, "ignore_eos": True},
    {"skip_special_tokens": False, "spaces_between_special_tokens": True},
    {"return_tokens_as_token_ids": True},
    {"max_tokens": 5, "n": 1, "stream": False},
    {"stream": True, "stream_options": {"include_usage": True, "continuous_usage_stats": False}, "stream_interval": 2},
    {"stop": [], "bad_words": [], "min_tokens": 0, "presence_penalty": 0.0, "frequency_penalty": 0},
    {"response_format": {"type": "text"}, "vllm_xargs": {}, "watermarking": False},
    {"model": "m", "cache_salt": "s", "priority": 1, "session_id": "a", "request_id": "b", "user": "c"},
    {"length_penalty": 2.0, "return_token_offsets": True},
    NONE,
]
EITHER_MAY_NOT = [
    {"seed": 4},
    {"seed": 0, "temperature": 1},
    {"seed": 4, "temperature": None},
    {"seed": 4, "temperature": False},
    {"presence_penalty": 0.5},
    {"frequency_penalty": -0.5},
    {"stop": "a"},
    {"stop": ["a"]},
    {"min_tokens": 1},
    {"bad_words": ["a"]},
    {"structured_outputs": {"regex": "a"}},
    {"response_format": {"type": "json_object"}},
    {"thinking_token_budget": 5},
    {"repetition_detection": {"max_pattern_size": 3}},
    {"watermarking": True},
    {"n": 2},
    {"return_token_ids": True},
    {"routed_experts_prompt_start": 2},
    {"logprob_token_ids": [1]},
    {"spaces_between_special_tokens": False},
    {"truncate_prompt_tokens": 5},
    {"vllm_xargs": {"a": 1}},
    {"echo": True},
    {"prompt_logprobs": 1},
    {"use_beam_search": True},
    {"stream": True, "stream_options": {"include_usage": "yes"}},
    {"stream_options": {"include_usage": True}},
    {"max_tokens": "5"},
    {"stream_interval": 0},
    {"something_new": 1},
]
CHAT_MAY = [
    {"logprobs": True, "top_logprobs": 5},
    {"max_completion_tokens": 4},
    {"reasoning_effort": "low", "chat_template_kwargs": {"a": 1}, "documents": [{"text": "x"}]},
    {"add_generation_prompt": False, "continue_final_message": True},
    {"tool_choice": "none", "parallel_tool_calls": False},
    {"include_reasoning": True, "return_prompt_text": False},
]
CHAT_MAY_NOT = [
    {"tools": [{"type": "function"}]},
    {"tool_choice": "auto"},
    {"tool_choice": None},
    {"include_reasoning": False},
    {"return_prompt_text": True},
    {"max_completion_tokens": 4.5},
]


def _id(fields):
    return ",".join(fields) or "nothing"


def asked(api, fields):
    body = CHAT if api is Api.CHAT else {"prompt": "x"}
    return parse_request(api, json.dumps(body | fields).encode())


@pytest.mark.parametrize("api", Api)
@pytest.mark.parametrize("fields", EITHER_MAY, ids=_id)
def test_may_go_on(api, fields):
    given = {name: value for name, value in fields.items() if api is Api.CHAT or name != "tools"}
    assert may_resume(asked(api, given), CAN, CAN)


@pytest.mark.parametrize("api", Api)
@pytest.mark.parametrize("fields", EITHER_MAY_NOT, ids=_id)
def test_may_not_go_on(api, fields):
    assert not may_resume(asked(api, fields), CAN, CAN)


@pytest.mark.parametrize("fields", CHAT_MAY, ids=_id)
def test_a_chat_may_go_on(fields):
    assert may_resume(asked(Api.CHAT, fields), CAN, CAN)


@pytest.mark.parametrize("fields", CHAT_MAY_NOT, ids=_id)
def test_a_chat_may_not_go_on(fields):
    assert not may_resume(asked(Api.CHAT, fields), CAN, CAN)


@pytest.mark.parametrize(
    ("fields", "may"),
    [
        ({"suffix": "x"}, True),
        ({"prompt": [1, 2]}, True),
        ({"prompt": ["a"]}, True),
        ({"prompt": ["a", "b"]}, False),
        ({"logprobs": 0}, False),
        ({"max_completion_tokens": 3}, False),
    ],
)
def test_completions(fields, may):
    assert may_resume(asked(Api.COMPLETION, fields), CAN, CAN) is may


@pytest.mark.parametrize("limits", [{}, {"resume": 0}])
def test_both_instances_have_to_allow_it(limits):
    cannot = Instance(dataclasses.replace(ENCODER, limits=limits), 0.0)
    request = asked(Api.CHAT, {})
    assert [may_resume(request, *pair) for pair in ((CAN, CAN), (CAN, cannot), (cannot, CAN))] == [True, False, False]


@pytest.mark.parametrize("api", Api)
def test_every_field_of_vllm_is_judged(api):
    judged = first_token.CHAT if api is Api.CHAT else first_token.COMPLETION
    known = fields.CHAT if api is Api.CHAT else fields.COMPLETION
    assert set(judged) == set(known)


@pytest.mark.parametrize(
    ("api", "given", "wanted"),
    [
        (Api.CHAT, {}, None),
        (Api.CHAT, {"max_tokens": 3}, 3),
        (Api.CHAT, {"max_tokens": 3, "max_completion_tokens": 4}, 4),
        (Api.COMPLETION, {}, 16),
        (Api.COMPLETION, {"max_tokens": None}, 16),
        (Api.COMPLETION, {"max_tokens": 3, "max_completion_tokens": 4}, 3),
    ],
)
def test_how_many_tokens_are_asked_for(api, given, wanted):
    assert asked(api, given).max_tokens == wanted
