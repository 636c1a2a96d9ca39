# SPDX-License-Identifier: Apache-2.0
"""Several choices and several prompts while prefill and decode are apart."""

import asyncio

import pytest

from tests.fakes.instance import item_hash
from tests.unit.router.conftest import image, soon, text

CAT = image("cat")
CAT_KEY = item_hash(CAT["image_url"]["url"])


async def test_three_choices_take_three_pairs_and_make_one_answer(cluster):
    encode, prefill, decode = await cluster.up("E", "P", "D")
    answer = await cluster.chat([text("see"), CAT], n=3, seed=5, headers={"X-Request-Id": "abc"})
    assert answer.texts == [f"see <{CAT_KEY}> seed={seed}" for seed in (5, 6, 7)]
    assert [choice["index"] for choice in answer.json["choices"]] == [0, 1, 2]
    assert answer.json["id"] == "chatcmpl-abc"
    assert len(encode.seen) == 1
    assert [body.get("n") for body in prefill.bodies("prefill")] == [None] * 3
    assert [body["n"] for body in decode.bodies("generate")] == [1, 1, 1]
    taken = [body["kv_transfer_params"]["remote_request_id"] for body in decode.bodies("generate")]
    assert sorted(taken) == ["abc-p", "abc-p1", "abc-p2"]
    assert sorted(seen.request_id for seen in decode.seen) == ["abc", "abc-1", "abc-2"]


async def test_usage_counts_the_prompt_once_and_the_choices_together(cluster):
    await cluster.up("P", "D")
    answer = await cluster.chat("four words are here", n=3)
    assert answer.json["usage"] == {"prompt_tokens": 1, "completion_tokens": 12, "total_tokens": 13}


async def test_without_a_seed_the_choices_get_none(cluster):
    _, decode = await cluster.up("P", "D")
    await cluster.chat("x", n=2)
    assert all("seed" not in body for body in decode.bodies("generate"))


async def test_three_streamed_choices_make_one_stream(cluster):
    await cluster.up("P", "D")
    answer = await cluster.chat(
        "hi",
        n=3,
        seed=1,
        stream=True,
        stream_options={"include_usage": True},
        headers={"X-Request-Id": "abc"},
    )
    assert answer.status == 200
    assert answer.headers["Content-Type"].startswith("text/event-stream")
    assert answer.streamed == {0: "hi seed=1", 1: "hi seed=2", 2: "hi seed=3"}
    assert {event["id"] for event in answer.events} == {"chatcmpl-abc"}
    with_usage = [event for event in answer.events if "usage" in event]
    assert with_usage == answer.events[-1:]
    assert with_usage[0]["choices"] == []
    assert with_usage[0]["usage"] == {"prompt_tokens": 1, "completion_tokens": 6, "total_tokens": 7}
    assert answer.raw.count(b"[DONE]") == 1


async def test_streamed_choices_without_usage_end_without_it(cluster):
    await cluster.up("P", "D")
    answer = await cluster.chat("hi", n=2, stream=True)
    assert all("usage" not in event for event in answer.events)


async def test_streamed_choices_come_interleaved(cluster):
    _, decode = await cluster.up("P", "D")
    decode.does.words = ["one", "two"]
    decode.does.gate = asyncio.Event()
    asked = asyncio.create_task(cluster.chat("x", n=2, stream=True))
    await soon(lambda: len(decode.seen) == 2)
    await asyncio.sleep(0.05)
    decode.does.gate.set()
    answer = await asked
    first_words = [event["choices"][0] for event in answer.events[:2]]
    assert sorted(choice["index"] for choice in first_words) == [0, 1]
    assert {choice["delta"]["content"] for choice in first_words} == {"one "}


async def test_the_first_choice_is_prefilled_before_the_others(cluster):
    prefill, decode = await cluster.up("P", "D")
    release = asyncio.Event()
    prefill.does.hold = release
    asked = asyncio.create_task(cluster.chat("x", n=3))
    await soon(lambda: prefill.seen)
    await asyncio.sleep(0.05)
    assert len(prefill.seen) == 1
    release.set()
    assert len((await asked).texts) == 3
    assert len(prefill.seen) == 3


async def test_a_choice_decodes_while_others_still_prefill(cluster):
    prefill, decode = await cluster.up("P", "D")
    release = asyncio.Event()

    def hold_the_others(answer):
        prefill.does.hold = release

    prefill.does.change = hold_the_others
    asked = asyncio.create_task(cluster.chat("x", n=2))
    await soon(lambda: [seen.outcome for seen in decode.seen] == ["answered"])
    assert [seen.outcome for seen in prefill.seen] == ["answered", "running"]
    release.set()
    assert len((await asked).texts) == 2


async def test_choices_of_one_prompt_share_their_prefill_instance(cluster):
    one, other, _ = await cluster.up("P", "P", "D")
    await cluster.chat("x", n=4)
    assert sorted([len(one.seen), len(other.seen)]) == [0, 4]


async def test_choices_of_an_image_that_prefill_encodes_itself(cluster):
    both, decode = await cluster.up("EP", "D")
    answer = await cluster.chat([CAT], n=2)
    assert answer.texts == [f"<{CAT_KEY}>"] * 2
    # It offers the embedding to nobody, so each prefill needs the media; decode never does.
    assert [body["messages"][0]["content"] for body in both.bodies("prefill")] == [[CAT]] * 2
    for body in decode.bodies("generate"):
        assert body["messages"][0]["content"][0]["uuid"] == CAT_KEY


async def test_choices_of_an_image_that_prefill_offers_take_it_once(cluster):
    both, _ = await cluster.up("EP", "D")

    def offer(answer):
        for key, entry in (answer["ec_transfer_params"] or {}).items():
            entry["handle"] = {"key": key}

    both.does.change = offer
    await cluster.chat([CAT], n=2)
    first, second = both.bodies("prefill")
    assert first["messages"][0]["content"] == [CAT]
    assert second["messages"][0]["content"][0]["uuid"] == CAT_KEY
    assert second["ec_transfer_params"] == {CAT_KEY: {"handle": {"key": CAT_KEY}}}


async def test_completion_of_one_prompt(cluster):
    prefill, decode = await cluster.up("P", "D")
    answer = await cluster.complete("once upon", max_tokens=3, stop=["x"], headers={"X-Request-Id": "abc"})
    assert answer.text == "once upon"
    assert answer.json["id"] == "cmpl-abc"
    (asked,) = prefill.bodies("prefill")
    assert (asked["prompt"], asked["max_tokens"]) == ("once upon", 1)
    assert "stop" not in asked
    (asked,) = decode.bodies("generate")
    assert (asked["prompt"], asked["max_tokens"], asked["stop"]) == ("once upon", 3, ["x"])


async def test_completion_of_several_prompts(cluster):
    prefill, decode = await cluster.up("P", "D")
    answer = await cluster.complete(["one", "two b", "three c d"], n=2, seed=1)
    assert answer.texts == [f"{prompt} seed={seed}" for prompt in ("one", "two b", "three c d") for seed in (1, 2)]
    assert [choice["index"] for choice in answer.json["choices"]] == list(range(6))
    assert answer.json["usage"]["prompt_tokens"] == 6
    assert sorted(body["prompt"] for body in decode.bodies("generate")) == sorted(["one", "two b", "three c d"] * 2)
    assert len(prefill.seen) == 6


async def test_streamed_completion_of_several_prompts(cluster):
    await cluster.up("P", "D")
    answer = await cluster.complete(["one", "two"], stream=True, stream_options={"include_usage": True})
    assert answer.streamed == {0: "one", 1: "two"}
    assert answer.events[-1]["usage"] == {"prompt_tokens": 2, "completion_tokens": 2, "total_tokens": 4}


@pytest.mark.parametrize("prompt", ["text", [1, 2, 3], ["text"], [[1, 2, 3]]])
async def test_one_prompt_in_each_form_takes_one_pair(cluster, prompt):
    prefill, decode = await cluster.up("P", "D")
    assert (await cluster.complete(prompt)).status == 200
    alone = prompt[0] if isinstance(prompt[0], list) or prompt == ["text"] else prompt
    assert [body["prompt"] for body in (*prefill.bodies("prefill"), *decode.bodies("generate"))] == [alone] * 2


async def test_prompts_are_spread_over_instances(cluster):
    one, other, left, right = await cluster.up("P", "P", "D", "D")
    await cluster.complete(["a", "b", "c", "d"])
    assert [len(one.seen), len(other.seen)] == [2, 2]
    assert [len(left.seen), len(right.seen)] == [2, 2]


async def test_one_instance_gets_several_prompts_as_they_are(cluster):
    (both,) = await cluster.up("PD")
    answer = await cluster.complete(["one", "two"], n=2)
    assert answer.texts == ["one", "one", "two", "two"]
    assert [seen.body for seen in both.seen] == [{"model": "tiny", "prompt": ["one", "two"], "n": 2}]


async def test_not_more_pairs_at_once_than_allowed(cluster_with):
    async with cluster_with(fan_out=2) as cluster:
        prefill, _ = await cluster.up("P", "D")
        release = asyncio.Event()
        prefill.does.hold = release
        asked = asyncio.create_task(cluster.complete(["a", "b", "c", "d", "e"]))
        await soon(lambda: len(prefill.seen) == 2)
        await asyncio.sleep(0.05)
        assert len(prefill.seen) == 2
        release.set()
        assert (await asked).texts == ["a", "b", "c", "d", "e"]


async def test_more_choices_than_allowed_are_refused(cluster_with):
    async with cluster_with(max_choices=4) as cluster:
        prefill, _ = await cluster.up("P", "D")
        answer = await cluster.complete(["a", "b", "c"], n=2)
        assert answer.status == 400
        assert "more than the 4 choices" in answer.error["message"]
        assert prefill.seen == []


async def test_one_failing_choice_fails_the_request_and_stops_the_others(cluster):
    prefill, decode = await cluster.up("P", "D")
    never = asyncio.Event()

    def then_hold(answer):
        prefill.does.status, prefill.does.body = 500, {"error": {"message": "no", "code": 500}}

    prefill.does.change = then_hold
    decode.does.hold = never
    answer = await cluster.chat("x", n=2)
    assert answer.status == 500
    assert answer.error["message"] == "no"
    await soon(lambda: [seen.outcome for seen in decode.seen] == ["aborted"])


async def test_a_streamed_choice_that_breaks_ends_the_common_stream_with_an_error(cluster):
    _, decode = await cluster.up("P", "D")
    decode.does.words = ["one", "two", "three"]
    decode.does.break_after = 2
    answer = await cluster.chat("x", n=2, stream=True)
    assert answer.status == 200
    assert answer.events[-1]["error"]["code"] == 502
    assert answer.raw.count(b"[DONE]") == 1
