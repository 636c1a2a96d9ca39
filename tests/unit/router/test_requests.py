# SPDX-License-Identifier: Apache-2.0
"""The bodies that the stages get, made from one body that nobody changes."""

import copy
import json

import pytest

from tests.unit.router.conftest import image, text
from vllm_epd.errors import BadRequestError
from vllm_epd.router.media import EncodedItem
from vllm_epd.router.requests import (
    Api,
    Branch,
    decode_body,
    encode_body,
    parse_request,
    prefill_body,
    without_media,
)

CAT = image("cat")
ITEM = EncodedItem("h1", "image", {"image_grid_thw": [1, 2, 3]}, {"at": "e"})
KV = {"do_remote_prefill": True, "remote_block_ids": [1]}
#: One value for each thing that P must not do again.
OUTPUT = {
    "max_tokens": 9,
    "min_tokens": 4,
    "stop": ["x"],
    "logprobs": True,
    "top_logprobs": 2,
    "temperature": 0.1,
    "structured_outputs": {"json": {}},
    "logit_bias": {"1": 2},
    "stream": True,
    "stream_options": {"include_usage": True},
}
PROMPT = {
    "tools": [{"type": "function", "function": {"name": "f"}}],
    "tool_choice": "required",
    "response_format": {"type": "json_object"},
    "chat_template_kwargs": {"thinking": False},
    "priority": 2,
}


def chat(content="hi", **more):
    body = {"model": "tiny", "messages": [{"role": "user", "content": content}], **more}
    return parse_request(Api.CHAT, json.dumps(body).encode())


def completion(prompt, **more):
    return parse_request(Api.COMPLETION, json.dumps({"prompt": prompt, **more}).encode())


def test_prefill_gets_what_shapes_the_prompt_and_one_token_to_make():
    body = prefill_body(chat(**OUTPUT, **PROMPT), Branch(), [])
    assert {name: body[name] for name in PROMPT} == PROMPT
    assert (body["max_tokens"], body["stream"]) == (1, False)
    assert body["kv_transfer_params"]["do_remote_decode"] is True
    left_out = OUTPUT.keys() - {"max_tokens", "stream"}
    assert left_out.isdisjoint(body)
    assert "n" not in body


def test_prefill_keeps_the_name_that_the_client_uses_for_its_limit():
    assert "max_completion_tokens" not in prefill_body(chat(max_tokens=4), Branch(), [])
    assert prefill_body(chat(max_completion_tokens=4), Branch(), [])["max_completion_tokens"] == 1


def test_decode_gets_everything():
    body = decode_body(chat(**OUTPUT, **PROMPT, n=1), Branch(), [], KV)
    assert {name: body[name] for name in OUTPUT | PROMPT} == OUTPUT | PROMPT
    assert body["kv_transfer_params"] == KV


def test_prefill_and_decode_get_the_same_prompt():
    request = chat([text("a"), CAT, text("b")], **PROMPT)
    prefill, decode = prefill_body(request, Branch(), [ITEM]), decode_body(request, Branch(), [ITEM], KV)
    shaping = {"messages", *PROMPT}
    assert {name: prefill[name] for name in shaping} == {name: decode[name] for name in shaping}


@pytest.mark.parametrize(("choice", "seed"), [(0, 7), (2, 9)])
def test_each_choice_has_the_seed_that_vllm_gives_it(choice, seed):
    assert decode_body(chat(n=3, seed=7), Branch(choice, 0, choice), [], KV)["seed"] == seed


def test_no_seed_stays_none():
    assert decode_body(chat(n=3, seed=None), Branch(2, 0, 2), [], KV)["seed"] is None
    assert "seed" not in decode_body(chat(n=3), Branch(2, 0, 2), [], KV)


def test_one_instance_for_both_keeps_n_and_seed():
    body = decode_body(chat([CAT], n=3, seed=7), Branch(), [ITEM], None)
    assert (body["n"], body["seed"]) == (3, 7)
    assert "kv_transfer_params" not in body


def test_decode_without_handles_gets_no_transfer_parameters():
    bare = EncodedItem("h1", "image", {})
    assert "ec_transfer_params" not in decode_body(chat([CAT]), Branch(), [bare], KV)


def test_the_clients_body_is_left_as_it_is():
    request = chat([text("a"), CAT, CAT], n=2, seed=1, **OUTPUT)
    before = copy.deepcopy(request.body)
    for body in (
        encode_body(request, request.media[0], "offer"),
        prefill_body(request, Branch(), [ITEM, ITEM]),
        prefill_body(request, Branch(), None),
        decode_body(request, Branch(1, 0, 1), [ITEM, ITEM], KV),
    ):
        body["messages"][0]["changed"] = True
    assert request.body == before


def test_a_request_without_its_media_makes_the_same_bodies():
    request = chat([text("a"), {**CAT, "caption": "x"}, CAT], n=2, seed=1, **PROMPT)
    items = [ITEM, EncodedItem("h2", "video", {"video_grid_thw": [1]})]
    slim = without_media(request, items)
    assert slim.raw == b""
    assert "base64" not in json.dumps(slim.body)
    assert all("image_url" not in each.part for each in slim.media)
    assert prefill_body(slim, Branch(), items) == prefill_body(request, Branch(), items)
    assert decode_body(slim, Branch(), items, KV) == decode_body(request, Branch(), items, KV)
    assert decode_body(slim, Branch(), items, None) == decode_body(request, Branch(), items, None)


def test_branches_are_numbered_prompt_by_prompt():
    request = completion(["a", "b"], n=2)
    assert request.branches == (Branch(0, 0, 0), Branch(1, 0, 1), Branch(2, 1, 0), Branch(3, 1, 1))
    assert prefill_body(request, request.branches[2], [])["prompt"] == "b"
    assert decode_body(request, request.branches[2], [], KV)["prompt"] == "b"


@pytest.mark.parametrize(
    ("prompt", "prompts"),
    [("a", ("a",)), ([1, 2], ([1, 2],)), (["a"], ("a",)), ([[1], [2, 3]], ([1], [2, 3])), ([], ([],))],
)
def test_prompts_in_each_form(prompt, prompts):
    assert completion(prompt).prompts == prompts


def test_a_null_n_is_one_and_a_null_limit_is_none():
    request = chat(n=None, max_tokens=None, stream=None)
    assert (request.n, request.stream) == (1, False)


def test_echo_may_go_without_tokens():
    assert completion("x", echo=True, max_tokens=0).body["max_tokens"] == 0
    with pytest.raises(BadRequestError, match="at least 1"):
        completion("x", max_tokens=0)


def test_values_that_only_vllm_can_judge_are_left_to_it():
    assert chat(max_tokens="10", temperature=-3).body["max_tokens"] == "10"


def test_an_offer_takes_the_place_of_vllms_own_way():
    body = prefill_body(chat(**OUTPUT, **PROMPT), Branch(), [], offer="t1")
    assert body == prefill_body(chat(**OUTPUT, **PROMPT), Branch(), []) | {
        "kv_transfer_params": {"epd": {"offer": "t1"}}
    }


def test_a_prefill_that_samples_gets_all_but_what_is_of_streams():
    asked = chat(**OUTPUT | PROMPT | {"stream_options": {}, "stream_interval": 2})
    body = prefill_body(asked, Branch(), [], samples=True)
    given = {name: value for name, value in (OUTPUT | PROMPT).items() if not name.startswith("stream")}
    assert {name: body[name] for name in given} == given | {"max_tokens": 1}
    assert body["stream"] is False
    assert {"stream_options", "stream_interval"}.isdisjoint(body)
