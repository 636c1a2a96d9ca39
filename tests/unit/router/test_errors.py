# SPDX-License-Identifier: Apache-2.0
"""What goes wrong, and what the client is told."""

import asyncio
import gzip

import pytest

from tests.unit.router.conftest import busy, image, soon, text
from vllm_epd.router.config import Timeouts

CAT = image("cat")
BAD_IMAGE = {"error": {"message": "cannot identify image", "type": "BadRequestError", "param": None, "code": 400}}


@pytest.mark.parametrize("raw", [b"{", b"", b"[]", b'"x"', b"\xff\xfe", b'{"a":' * 100_000])
async def test_malformed_bodies(cluster, raw):
    (whole,) = await cluster.up("EPD")
    answer = await cluster.call("POST", "/v1/chat/completions", data=raw, headers={"Content-Type": "application/json"})
    assert answer.status == 400
    assert set(answer.error) == {"message", "type", "param", "code"}
    assert (answer.error["type"], answer.error["code"]) == ("BadRequestError", 400)
    assert whole.seen == []


async def test_requests_without_a_body_are_refused_one_after_the_other(cluster):
    await cluster.up("EPD")
    for _ in range(3):
        headers = {"Content-Type": "application/json"}
        request = cluster.call("POST", "/v1/chat/completions", data=b"", headers=headers)
        assert (await asyncio.wait_for(request, 10)).status == 400
    assert (await cluster.chat("words")).status == 200


async def test_only_json_is_read(cluster):
    await cluster.up("EPD")
    answer = await cluster.call("POST", "/v1/chat/completions", data=b"{}", headers={"Content-Type": "text/plain"})
    assert answer.status == 400
    assert "application/json" in answer.error["message"]


async def test_a_packed_body_is_refused(cluster):
    await cluster.up("EPD")
    headers = {"Content-Type": "application/json", "Content-Encoding": "gzip"}
    answer = await cluster.call("POST", "/v1/chat/completions", data=gzip.compress(b"{}"), headers=headers)
    assert answer.status == 400
    assert "gzip" in answer.error["message"]


REFUSED = {
    "no messages": ({"messages": None}, "messages"),
    "messages of another type": ({"messages": "hi"}, "messages"),
    "a message that is no object": ({"messages": ["hi"]}, "messages"),
    "a part that is no object": ({"messages": [{"role": "user", "content": [1]}]}, "messages"),
    "an image without its url": (
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]},
        "messages",
    ),
    "no tokens to generate": ({"max_tokens": 0}, "max_tokens"),
    "less than no tokens": ({"max_completion_tokens": -1}, "max_completion_tokens"),
    "no choices": ({"n": 0}, "n"),
    "choices of another type": ({"n": "two"}, "n"),
    "a model of another type": ({"model": 3}, "model"),
    "stream of another type": ({"stream": "yes"}, "stream"),
    "kv transfer": ({"kv_transfer_params": {"remote_host": "evil"}}, "kv_transfer_params"),
    "ec transfer": ({"ec_transfer_params": {}}, "ec_transfer_params"),
    "smuggled transfer": ({"vllm_xargs": {"kv_transfer_params": "x"}}, "vllm_xargs"),
    "embeddings": (
        {"messages": [{"role": "user", "content": [{"type": "image_embeds", "image_embeds": "x"}]}]},
        "messages",
    ),
}


@pytest.mark.parametrize("letters", [("EPD",), ("E", "P", "D")], ids=["EPD", "1E1P1D"])
@pytest.mark.parametrize(("change", "param"), REFUSED.values(), ids=REFUSED.keys())
async def test_refused_before_anything_is_done(cluster, letters, change, param):
    fakes = await cluster.up(*letters)
    body = {"model": "tiny", "messages": [{"role": "user", "content": [CAT]}], **change}
    answer = await cluster.call("POST", "/v1/chat/completions", body)
    assert answer.status == 400
    assert answer.error["param"] == param
    assert all(fake.seen == [] for fake in fakes)


APART = {
    "prompt_logprobs": {"prompt_logprobs": 0},
    "echo": {"echo": True},
    "use_beam_search": {"use_beam_search": True},
    "truncate_prompt_tokens": {"truncate_prompt_tokens": -1},
}


@pytest.mark.parametrize(("field", "change"), APART.items(), ids=APART.keys())
async def test_what_only_one_instance_can_do_is_refused_of_two(cluster, field, change):
    encode, prefill, _ = await cluster.up("E", "P", "D")
    answer = await cluster.chat([CAT], **change)
    assert answer.status == 400
    assert answer.error["param"] == field
    assert f"`{field}` cannot be honoured" in answer.error["message"]
    assert encode.seen == []
    await cluster.up("EPD")
    with busy(cluster.instance(prefill)):
        assert (await cluster.chat([CAT], **change)).status == 200


async def test_beam_search_is_refused_where_only_encode_is_apart(cluster):
    await cluster.up("E", "PD")
    assert (await cluster.chat([CAT], use_beam_search=True)).status == 400
    assert (await cluster.chat("text", use_beam_search=True)).status == 200
    assert (await cluster.chat([CAT], prompt_logprobs=1)).status == 200


async def test_completions_are_checked_too(cluster):
    prefill, _ = await cluster.up("P", "D")
    assert (await cluster.complete(None)).error["param"] == "prompt"
    assert (await cluster.complete("")).error["param"] == "prompt"
    assert (await cluster.complete({"a": 1})).error["param"] == "prompt"
    assert (await cluster.complete("x", prompt_embeds="x")).error["param"] == "prompt_embeds"
    assert (await cluster.complete("x", echo=True, logprobs=1)).error["param"] == "echo"
    assert (await cluster.complete("x", echo=True, max_tokens=0)).error["param"] == "echo"
    assert prefill.seen == []
    assert (await cluster.complete("x", echo=True)).status == 200


async def test_a_length_that_no_instance_can_serve_is_refused_early(cluster):
    encode, _, _ = [await cluster.add(letters, limits={"max_model_len": 64}) for letters in "EPD"]
    answer = await cluster.chat([CAT], max_tokens=65)
    assert answer.status == 400
    assert "max_tokens=65 cannot be greater than max_model_len=64" in answer.error["message"]
    assert encode.seen == []
    assert (await cluster.chat([CAT], max_tokens=64)).status == 200


async def test_an_unknown_model(cluster):
    encode, _, _ = await cluster.up("E", "P", "D")
    answer = await cluster.chat([CAT], model="other")
    assert answer.status == 404
    assert (answer.error["type"], answer.error["param"], answer.error["code"]) == (
        "NotFoundError",
        "model",
        404,
    )
    assert "`other` does not exist" in answer.error["message"]
    assert encode.seen == []


@pytest.mark.parametrize(
    ("present", "missing"),
    [
        (("P", "D"), ["encode"]),
        (("E", "D"), ["prefill"]),
        (("E", "P"), ["decode"]),
        (("E",), ["prefill", "decode"]),
        ((), ["encode", "prefill", "decode"]),
    ],
)
async def test_a_missing_stage_is_named(cluster, present, missing):
    fakes = await cluster.up(*present)
    answer = await cluster.chat([CAT])
    assert answer.status == 503
    assert answer.error["type"] == "ServiceUnavailableError"
    for stage in ("encode", "prefill", "decode"):
        assert (f"no {stage} instance" in answer.error["message"]) == (stage in missing)
    assert int(answer.headers["Retry-After"]) > 0
    assert all(fake.seen == [] for fake in fakes)


async def test_text_needs_no_encode_instance(cluster):
    await cluster.up("P", "D")
    assert (await cluster.chat("text")).status == 200


STAGES = {"encode": 0, "prefill": 1, "decode": 2}


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("stream", [False, True])
async def test_a_refusal_reaches_the_client_as_it_is(cluster, stage, stream):
    fakes = await cluster.up("E", "P", "D")
    fakes[STAGES[stage]].does.status = 400
    fakes[STAGES[stage]].does.body = BAD_IMAGE
    answer = await cluster.chat([CAT], stream=stream)
    assert (answer.status, answer.json) == (400, BAD_IMAGE)
    assert answer.headers["Content-Type"].startswith("application/json")


@pytest.mark.parametrize("stage", STAGES)
async def test_an_overloaded_instance_keeps_its_status_and_patience(cluster, stage):
    fakes = await cluster.up("E", "P", "D")
    fakes[STAGES[stage]].does.status = 503
    fakes[STAGES[stage]].does.body = {"error": {"message": "full", "code": 503}}
    fakes[STAGES[stage]].does.headers = {"Retry-After": "7"}
    answer = await cluster.chat([CAT])
    assert (answer.status, answer.error["message"], answer.headers["Retry-After"]) == (503, "full", "7")


@pytest.mark.parametrize("stage", STAGES)
async def test_an_answer_that_is_no_json_is_told_of(cluster, stage):
    fakes = await cluster.up("E", "P", "D")
    fakes[STAGES[stage]].does.status = 500
    fakes[STAGES[stage]].does.body = b"Internal Server Error"
    answer = await cluster.chat([CAT])
    assert answer.status == 500
    assert answer.error["type"] == "UpstreamError"
    assert f"{stage} instance {fakes[STAGES[stage]].instance_id} answered 500" in answer.error["message"]


@pytest.mark.parametrize("stage", STAGES)
async def test_an_instance_that_dies_over_a_request(cluster, stage):
    fakes = await cluster.up("E", "P", "D")
    fakes[STAGES[stage]].does.break_after = 0
    answer = await cluster.chat([CAT])
    assert answer.status == 502
    assert f"{stage} instance {fakes[STAGES[stage]].instance_id} broke off" in answer.error["message"]


async def test_encoding_that_failed_is_tried_once_more_elsewhere(cluster):
    bad, good, *_ = await cluster.up("E", "E", "P", "D")
    bad.does.status, bad.does.body = 500, {"error": {"message": "cache drift", "code": 500}}
    answers = [await cluster.chat([image(name)]) for name in ("cat", "dog")]
    assert [answer.status for answer in answers] == [200, 200]
    assert len(good.seen) == 2, "each was encoded by the good one, whichever was asked first"


async def test_encoding_that_failed_twice_or_by_the_clients_fault_is_told_of(cluster):
    encode, *_ = await cluster.up("E", "P", "D")
    encode.does.status, encode.does.body = 500, {"error": {"message": "again", "code": 500}}
    answer = await cluster.chat([CAT])
    assert (answer.status, answer.error["message"], len(encode.seen)) == (500, "again", 2)
    encode.does.status, encode.does.body = 400, BAD_IMAGE
    assert (await cluster.chat([CAT])).status == 400
    assert len(encode.seen) == 3


async def test_a_failed_item_stops_the_others(cluster):
    bad, slow, prefill, _ = await cluster.up("E", "E", "P", "D")
    slow.does.hold = asyncio.Event()
    bad.does.status, bad.does.body = 400, BAD_IMAGE
    bad.does.hold = release = asyncio.Event()
    asked = asyncio.create_task(cluster.chat([CAT, image("dog")]))
    await soon(lambda: bad.seen and slow.seen)
    release.set()
    answer = await asked
    assert (answer.status, answer.json) == (400, BAD_IMAGE)
    await soon(lambda: slow.seen[0].outcome == "aborted")
    assert prefill.seen == []


def _drop(*path):
    def change(answer):
        for name in path[:-1]:
            answer = answer[name] if name in answer else next(iter(answer.values()))
        answer.pop(path[-1] if path[-1] in answer else next(iter(answer)))

    return change


def _twice(answer):
    answer["ec_transfer_params"]["another"] = next(iter(answer["ec_transfer_params"].values()))


UNUSABLE = {
    "no ec_transfer_params": (_drop("ec_transfer_params"), "without ec_transfer_params"),
    "no item": (lambda answer: answer["ec_transfer_params"].clear(), "offered 0 embeddings"),
    "two items": (_twice, "offered 2 embeddings"),
    "no handle": (_drop("ec_transfer_params", "*", "handle"), "gave no handle"),
    "no metadata": (_drop("ec_transfer_params", "*", "metadata"), "no usable modality and metadata"),
    "no modality": (_drop("ec_transfer_params", "*", "modality"), "no usable modality and metadata"),
    "no indices": (_drop("ec_transfer_params", "*", "item_indices"), "gave no item_indices"),
}


@pytest.mark.parametrize(("change", "message"), UNUSABLE.values(), ids=UNUSABLE.keys())
async def test_an_unusable_offer(cluster, change, message):
    encode, prefill, _ = await cluster.up("E", "P", "D")
    encode.does.change = change
    answer = await cluster.chat([CAT])
    assert answer.status == 502
    assert message in answer.error["message"]
    assert encode.instance_id in answer.error["message"]
    assert prefill.seen == []


async def test_media_that_prefill_encoded_but_did_not_describe(cluster):
    both, decode = await cluster.up("EP", "D")
    both.does.change = lambda answer: answer["ec_transfer_params"].popitem()
    answer = await cluster.chat([CAT, image("dog")])
    assert answer.status == 502
    assert "described items [0] of 2" in answer.error["message"]
    assert decode.seen == []


@pytest.mark.parametrize(
    "kv", [None, {"do_remote_prefill": True}, {"remote_block_ids": []}, {"remote_block_ids": [[], []]}]
)
async def test_a_prefill_that_was_not_handed_over(cluster, kv):
    prefill, decode = await cluster.up("P", "D")
    prefill.does.change = lambda answer: answer.update(kv_transfer_params=kv)
    answer = await cluster.chat("text")
    assert answer.status == 502
    assert f"prefill instance {prefill.instance_id} did not hand over its KV cache" in answer.error["message"]
    assert decode.seen == []


async def test_a_choice_that_failed_is_no_success(cluster):
    (whole,) = await cluster.up("EPD")
    whole.does.change = lambda answer: answer["choices"][0].update(finish_reason="error")
    answer = await cluster.chat("text")
    assert answer.status == 502
    assert answer.error["type"] == "UpstreamError"


async def test_transfer_parameters_stay_inside(cluster):
    _, decode = await cluster.up("P", "D")
    decode.does.change = lambda answer: answer.update(kv_transfer_params={"remote_host": "x"})
    answer = await cluster.chat('text with "kv_transfer_params": in it')
    assert answer.json["kv_transfer_params"] is None
    assert answer.text == 'text with "kv_transfer_params": in it'


@pytest.mark.parametrize("stage", ["encode", "prefill", "decode"])
async def test_an_instance_that_takes_too_long(cluster_with, stage):
    async with cluster_with(timeouts=Timeouts(**{f"{stage}_s": 0.2})) as cluster:
        fakes = await cluster.up("E", "P", "D")
        fakes[STAGES[stage]].does.hold = asyncio.Event()
        answer = await cluster.chat([CAT])
        assert answer.status == 504
        assert f"{stage} instance" in answer.error["message"]
        await soon(lambda: fakes[STAGES[stage]].seen[0].outcome == "aborted")


@pytest.mark.parametrize("stage", STAGES)
async def test_an_instance_that_is_gone_is_passed_over(cluster, stage):
    gone = [await cluster.add(letters) for letters in "EPD"][STAGES[stage]]
    others = await cluster.up("E", "P", "D")
    await gone.stop()
    for name in ("cat", "dog"):
        assert (await cluster.chat([text("see"), image(name)])).status == 200
    assert cluster.instance(gone).suspended
    assert len(others[STAGES[stage]].seen) == 2
    assert [cluster.instance(each).outstanding for each in others] == [0, 0, 0]


async def test_what_is_done_is_not_done_again_for_an_instance_that_is_gone(cluster):
    encode, prefill, gone = await cluster.up("E", "P", "D")
    await cluster.up("D")
    await gone.stop()
    assert (await cluster.chat([CAT])).status == 200
    assert [len(each.seen) for each in (encode, prefill)] == [1, 1]


@pytest.mark.parametrize("stage", STAGES)
async def test_the_only_instance_of_a_stage_is_gone(cluster, stage):
    fakes = await cluster.up("E", "P", "D")
    await fakes[STAGES[stage]].stop()
    for _ in range(2):
        answer = await cluster.chat([CAT])
        assert answer.status == 503
        assert f"no {stage} instance" in answer.error["message"]


async def test_a_gone_instance_takes_work_again_after_its_heartbeat(cluster):
    (whole,) = await cluster.up("EPD")
    await whole.stop()
    assert (await cluster.chat("text")).status == 503
    await whole.start()
    assert (await cluster.chat("text")).status == 503
    await cluster.call("PUT", f"/epd/instances/{whole.instance_id}", {"epoch": "1"})
    assert (await cluster.chat("text")).status == 200


async def test_a_body_that_is_too_large(cluster_with):
    async with cluster_with(max_body_bytes=1000) as cluster:
        await cluster.up("EPD")
        answer = await cluster.chat("x" * 2000)
        assert answer.status == 413
        assert answer.error["code"] == 413


@pytest.mark.parametrize(("method", "path"), [("GET", "/nowhere"), ("POST", "/v1/embeddings")])
async def test_unknown_routes(cluster, method, path):
    answer = await cluster.call(method, path)
    assert answer.status == 404
    assert (answer.error["type"], answer.error["code"]) == ("NotFoundError", 404)
    assert "X-Request-Id" in answer.headers


async def test_a_method_that_a_route_does_not_have(cluster):
    answer = await cluster.call("GET", "/v1/chat/completions")
    assert (answer.status, answer.error["code"], answer.headers["Allow"]) == (405, 405, "POST")


async def test_a_bug_of_the_router_is_told_of_and_logged(cluster, monkeypatch, caplog):
    monkeypatch.setattr("vllm_epd.router.api_routes.parse_request", lambda api, raw, inline: 1 / 0)
    answer = await cluster.chat("x")
    assert (answer.status, answer.error["type"]) == (500, "InternalServerError")
    assert "ZeroDivisionError" in caplog.text
