# SPDX-License-Identifier: Apache-2.0
"""Every field of vLLM's requests is decided, and the decisions do what they say."""

import ast
import importlib.util
from pathlib import Path

import pytest

from vllm_epd.errors import BadRequestError
from vllm_epd.router import fields
from vllm_epd.router.fields import CHAT, COMPLETION, Dest, When

CHAT_FIELDS = """
    messages model frequency_penalty logit_bias logprobs top_logprobs max_tokens max_completion_tokens n
    presence_penalty response_format seed stop stream stream_options temperature top_p tools tool_choice
    reasoning_effort thinking_token_budget include_reasoning parallel_tool_calls user use_beam_search
    top_k min_p repetition_penalty watermarking length_penalty stop_token_ids include_stop_str_in_output
    ignore_eos min_tokens skip_special_tokens spaces_between_special_tokens truncate_prompt_tokens
    truncation_side prompt_logprobs logprob_token_ids allowed_token_ids bad_words echo
    add_generation_prompt continue_final_message add_special_tokens documents chat_template
    chat_template_kwargs media_io_kwargs mm_processor_kwargs structured_outputs priority request_id
    session_id return_tokens_as_token_ids return_token_ids routed_experts_prompt_start
    return_token_offsets return_prompt_text mm_payload return_mm_kwargs cache_salt kv_transfer_params
    ec_transfer_params vllm_xargs repetition_detection stream_interval
"""
COMPLETION_FIELDS = """
    model prompt echo frequency_penalty logit_bias logprobs max_tokens n presence_penalty seed stop
    stream stream_options suffix temperature top_p user use_beam_search top_k min_p repetition_penalty
    watermarking length_penalty stop_token_ids include_stop_str_in_output ignore_eos min_tokens
    skip_special_tokens spaces_between_special_tokens truncate_prompt_tokens truncation_side
    allowed_token_ids prompt_logprobs logprob_token_ids bad_words prompt_embeds add_special_tokens
    response_format structured_outputs priority request_id session_id return_tokens_as_token_ids
    return_token_ids routed_experts_prompt_start return_token_offsets mm_payload return_mm_kwargs
    cache_salt kv_transfer_params ec_transfer_params vllm_xargs repetition_detection
    thinking_token_budget stream_interval
"""
APIS = {
    "chat": (CHAT, CHAT_FIELDS, "chat_completion", "ChatCompletionRequest"),
    "completion": (COMPLETION, COMPLETION_FIELDS, "completion", "CompletionRequest"),
}


@pytest.mark.parametrize(("rules", "names", "_", "__"), APIS.values(), ids=APIS.keys())
def test_every_field_is_decided(rules, names, _, __):
    # A chat has no `logprobs: int`, but shares the name; it has no field that a completion alone has.
    assert set(rules) == set(names.split())


@pytest.mark.parametrize(("_", "names", "folder", "class_name"), APIS.values(), ids=APIS.keys())
def test_the_fields_are_those_of_the_installed_vllm(_, names, folder, class_name):
    spec = importlib.util.find_spec("vllm")
    if spec is None or spec.origin is None:
        pytest.skip("vLLM is not installed")
    tree = ast.parse((Path(spec.origin).parent / f"entrypoints/openai/{folder}/protocol.py").read_text())
    (body,) = [node.body for node in tree.body if isinstance(node, ast.ClassDef) and node.name == class_name]
    declared = {ast.unparse(node.target) for node in body if isinstance(node, ast.AnnAssign)}
    assert {name for name in declared if not name.startswith("_")} == set(names.split())


def test_every_refusal_says_why():
    refused = [rule for rules in (CHAT, COMPLETION) for rule in rules.values() if rule.refused is not None]
    assert len(refused) > 8
    assert all(rule.why for rule in refused)


def test_what_can_reach_a_renderer_goes_to_prefill_and_decode_alike():
    shaping = "tools tool_choice response_format reasoning_effort documents chat_template chat_template_kwargs"
    assert {CHAT[name].dest for name in shaping.split()} == {Dest.PROMPT}
    assert COMPLETION["suffix"].dest is Dest.PROMPT


def test_select_keeps_order_and_passes_unknown_fields_as_part_of_the_prompt():
    body = {"seed": 1, "later": 2, "model": "m", "media_io_kwargs": {}}
    assert list(fields.select(CHAT, body, Dest.ALL, Dest.PROMPT).items()) == [("later", 2), ("model", "m")]
    assert fields.select(CHAT, body, Dest.OUTPUT) == {"seed": 1}
    assert fields.select(CHAT, body, Dest.MEDIA) == {"media_io_kwargs": {}}


@pytest.mark.parametrize(
    ("body", "param", "on"),
    [
        ({"kv_transfer_params": {}}, "kv_transfer_params", When.ALWAYS),
        ({"ec_transfer_params": {"x": 1}}, "ec_transfer_params", When.ALWAYS),
        ({"vllm_xargs": {"ec_transfer_params": "x"}}, "vllm_xargs", When.ALWAYS),
        ({"prompt_logprobs": 0}, "prompt_logprobs", When.SPLIT),
        ({"echo": True}, "echo", When.SPLIT),
        ({"truncate_prompt_tokens": -1}, "truncate_prompt_tokens", When.SPLIT),
        ({"use_beam_search": True}, "use_beam_search", When.APART),
    ],
)
def test_refused(body, param, on):
    with pytest.raises(BadRequestError, match=f"`{param}` cannot be honoured") as caught:
        fields.refuse(CHAT, body, on)
    assert caught.value.param == param
    others = [each for each in When if each is not on]
    fields.refuse(CHAT, body, *others)


@pytest.mark.parametrize(
    "body",
    [
        {"kv_transfer_params": None, "ec_transfer_params": None},
        {"vllm_xargs": {"mine": 1}},
        {"vllm_xargs": None},
        {"prompt_logprobs": None},
        {"echo": False},
        {"echo": None},
        {"use_beam_search": False},
        {"truncate_prompt_tokens": 5},
        {"truncate_prompt_tokens": -1, "max_tokens": 3},
        {"truncate_prompt_tokens": -1, "max_completion_tokens": 3},
    ],
    ids=str,
)
def test_defaults_ask_for_nothing(body):
    fields.refuse(CHAT, body, *When)


def test_a_completion_may_echo_what_decode_knows():
    fields.refuse(COMPLETION, {"echo": True, "max_tokens": 5}, *When)
    with pytest.raises(BadRequestError, match="with logprobs"):
        fields.refuse(COMPLETION, {"echo": True, "logprobs": 0}, When.SPLIT)
