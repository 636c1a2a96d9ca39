# SPDX-License-Identifier: Apache-2.0
"""With a KV connector of our own P's token is the first of the answer, which is that of a single instance."""

import asyncio
import json

import pytest

from tests.fakes.tokens import TokenInstance
from tests.unit.router.conftest import image, soon, text

P = {"make": TokenInstance, "kv": "epd", "kv_agents": ("tcp://p:1",), "epoch": "p0"}
D = {"make": TokenInstance, "kv": "epd", "epoch": "d0"}
USAGE = {"stream": True, "stream_options": {"include_usage": True}}
EACH_USAGE = {"stream": True, "stream_options": {"include_usage": True, "continuous_usage_stats": True}}
LOGPROBS = {"logprobs": True, "top_logprobs": 2, "return_tokens_as_token_ids": True}

RESUMED = {
    "greedy": {"temperature": 0},
    "sampled": {"temperature": 0.7, "top_p": 0.9, "top_k": 4, "min_p": 0.1},
    "seeded but greedy": {"temperature": 0, "seed": 4},
    "biased": {"logit_bias": {"7": 5}, "allowed_token_ids": [5, 6, 7, 8]},
    "repetition penalty": {"repetition_penalty": 1.2},
    "log probabilities": LOGPROBS,
    "two tokens": {"max_tokens": 2},
    "another limit": {"max_completion_tokens": 5, "max_tokens": 2},
}
PLAIN = {
    "seeded": {"seed": 4},
    "penalty": {"presence_penalty": 0.5},
    "stop": {"stop": "w1"},
    "least": {"min_tokens": 3},
    "banned": {"bad_words": ["x"]},
}
ENDED = {
    "one token": ("go on", {"max_tokens": 1}),
    "one token under another name": ("go on", {"max_completion_tokens": 1, "max_tokens": 9}),
    "one token without a text": ("half@0", {"max_tokens": 1}),
    "the end": ("eos@0", {}),
}


async def pair(cluster, **limits):
    return await cluster.add("P", **P, limits=limits), await cluster.add("D", **D, limits=limits)


@pytest.fixture
async def single(cluster_with):
    """A router before one whole instance: what it answers is right."""
    async with cluster_with() as other:
        await other.add("EPD", make=TokenInstance)
        yield other


async def same(cluster, single, content, **fields):
    """The answer, which is the same from both."""
    asked = {"headers": {"X-Request-Id": "abc"}, **fields}
    got, wanted = await cluster.chat(content, **asked), await single.chat(content, **asked)
    return compared(got, wanted, fields)


async def same_completion(cluster, single, prompt, **fields):
    asked = {"headers": {"X-Request-Id": "abc"}, **fields}
    got, wanted = await cluster.complete(prompt, **asked), await single.complete(prompt, **asked)
    return compared(got, wanted, fields)


def compared(got, wanted, fields):
    assert (got.status, wanted.status) == (200, 200), (got.raw, wanted.raw)
    if fields.get("stream"):
        assert len({event["created"] for event in got.events}) == 1
        assert [{**event, "created": 0} for event in got.events] == [{**event, "created": 0} for event in wanted.events]
    else:
        assert {**got.json, "created": 0} == {**wanted.json, "created": 0}
    return got


@pytest.mark.parametrize("way", [{}, {"stream": True}, USAGE, EACH_USAGE], ids=["whole", "stream", "usage", "each"])
@pytest.mark.parametrize("fields", RESUMED.values(), ids=RESUMED)
async def test_what_goes_on_from_the_first_token_is_the_answer_of_a_single_instance(cluster, single, fields, way):
    _, decode = await pair(cluster)
    await same(cluster, single, "tell me", **fields, **way)
    assert [sent for _, sent in decode.taken] == [1]
    assert await cluster.metric('first_tokens_total{source="prefill"}') == 1


@pytest.mark.parametrize("way", [{}, USAGE, EACH_USAGE], ids=["whole", "usage", "each"])
@pytest.mark.parametrize("fields", [{}, {"max_tokens": 2}, {"temperature": 0, "ignore_eos": True}])
async def test_completions_go_the_same_way(cluster, single, fields, way):
    _, decode = await pair(cluster)
    await same_completion(cluster, single, "tell me", **fields, **way)
    assert [sent for _, sent in decode.taken] == [1]


@pytest.mark.parametrize("way", [{}, USAGE], ids=["whole", "usage"])
@pytest.mark.parametrize("fields", PLAIN.values(), ids=PLAIN)
async def test_what_needs_its_history_goes_the_plain_way(cluster, single, fields, way):
    _, decode = await pair(cluster)
    await same(cluster, single, "tell me", **fields, **way)
    assert [sent for _, sent in decode.taken] == [0]
    assert await cluster.metric('first_tokens_total{source="decode"}') == 1


async def test_log_probabilities_of_completions_go_the_plain_way(cluster, single):
    _, decode = await pair(cluster)
    await same_completion(cluster, single, "tell me", logprobs=2)
    assert [sent for _, sent in decode.taken] == [0]


@pytest.mark.parametrize("way", [{}, USAGE], ids=["whole", "usage"])
async def test_a_first_token_without_a_text_goes_the_plain_way(cluster, single, way):
    _, decode = await pair(cluster)
    await same(cluster, single, "half@0", **way)
    assert [sent for _, sent in decode.taken] == [0]


@pytest.mark.parametrize("lacking", ["P", "D"])
async def test_an_instance_that_does_not_say_that_it_may_be_resumed_is_not(cluster, single, lacking):
    await cluster.add("P", **P, limits={"resume": int(lacking != "P")})
    decode = await cluster.add("D", **D, limits={"resume": int(lacking != "D")})
    await same(cluster, single, "tell me")
    assert [sent for _, sent in decode.taken] == [0]


@pytest.mark.parametrize("way", [{}, {"stream": True}, USAGE, EACH_USAGE], ids=["whole", "stream", "usage", "each"])
@pytest.mark.parametrize(("prompt", "fields"), ENDED.values(), ids=ENDED)
async def test_a_first_token_that_ends_the_request_is_the_whole_answer(cluster, single, prompt, fields, way):
    _, decode = await pair(cluster)
    await same(cluster, single, prompt, **fields, **way, **LOGPROBS)
    assert decode.seen == []
    await soon(lambda: [what for what, _ in decode.kv_calls] == ["expect", "forget"])


async def test_a_completion_may_end_with_its_first_token_too(cluster, single):
    _, decode = await pair(cluster)
    for way in ({}, USAGE, EACH_USAGE):
        await same_completion(cluster, single, "go on", max_tokens=1, **way)
    assert decode.seen == []


async def test_a_first_token_that_fills_the_context_is_the_whole_answer(cluster, cluster_with):
    _, decode = await pair(cluster, max_model_len=3)
    async with cluster_with() as single:
        await single.add("EPD", make=TokenInstance, limits={"max_model_len": 3})
        answer = await same(cluster, single, [text("tell"), text("me")])
        assert (answer.json["choices"][0]["finish_reason"], decode.seen) == ("length", [])
        await same(cluster, single, "tell")
    assert [sent for _, sent in decode.taken] == [1]


@pytest.mark.parametrize("encoders", [("E", "P"), ("EP",)], ids="+".join)
async def test_media_changes_nothing(cluster, single, encoders):
    for letters in encoders:
        await cluster.add(letters, **(P if "P" in letters else {}))
    decode = await cluster.add("D", **D)
    for way in ({}, USAGE):
        await same(cluster, single, [text("see"), image("cat"), image("dog")], **way)
    assert [sent for _, sent in decode.taken] == [1, 1]


async def test_choices_and_prompts_go_the_plain_way(cluster):
    prefill, decode = await pair(cluster)
    assert (await cluster.chat("tell me", n=2, seed=3)).status == 200
    assert (await cluster.complete(["one", "two"])).status == 200
    assert [sent for _, sent in decode.taken] == [0] * 4
    names = [body["kv_transfer_params"]["epd"]["offer"] for body in prefill.bodies("prefill")]
    assert len(set(names)) == 4
    await soon(lambda: len(decode.kv_calls) == 8)


async def test_the_first_token_is_there_before_decode_answers(cluster):
    _, decode = await pair(cluster)
    decode.does.hold = asyncio.Event()
    body = {"model": "tiny", "stream": True, "messages": [{"role": "user", "content": "tell me"}]}
    async with cluster.session.post(cluster.url + "/v1/chat/completions", json=body) as response:
        role, first = [await asyncio.wait_for(response.content.readuntil(b"\n\n"), 20) for _ in range(2)]
        assert json.loads(role.removeprefix(b"data: "))["choices"][0]["delta"]["role"] == "assistant"
        assert json.loads(first.removeprefix(b"data: "))["choices"][0]["delta"]["content"].startswith(" w")
        await decode.arrived.wait()
        assert decode.seen[0].outcome == "running"
        decode.does.hold.set()
        assert (await response.content.read()).endswith(b"data: [DONE]\n\n")


async def test_prefill_samples_as_decode_would(cluster):
    prefill, decode = await pair(cluster)
    await cluster.chat("x", **RESUMED["sampled"], **LOGPROBS, **USAGE, max_tokens=7)
    asked, going_on = prefill.bodies("prefill")[0], decode.bodies("generate")[0]
    assert (asked["max_tokens"], asked["stream"], "stream_options" in asked) == (1, False, False)
    shared = RESUMED["sampled"] | LOGPROBS
    assert {name: asked[name] for name in shared} == {name: going_on[name] for name in shared} == shared
    assert going_on["max_tokens"] == 7


async def test_decode_expects_the_kv_cache_while_prefill_works(cluster):
    prefill, decode = await pair(cluster)
    prefill.does.hold = asyncio.Event()
    asked = asyncio.create_task(cluster.chat("x"))
    await prefill.arrived.wait()
    await soon(lambda: decode.kv_calls)
    transfer = prefill.seen[0].body["kv_transfer_params"]["epd"]["offer"]
    (what, told), *_ = decode.kv_calls
    assert (what, told.body) == ("expect", {"transfer": transfer, "epoch": "p0-kv", "rank": 0})
    assert cluster.instance(decode).outstanding == 1
    prefill.does.hold.set()
    assert (await asked).status == 200
    await soon(lambda: len(decode.kv_calls) == 2)
    assert [(each, seen.body) for each, seen in decode.kv_calls[1:]] == [("forget", {"transfer": transfer})]
    assert decode.bodies("generate")[0]["kv_transfer_params"]["epd"]["transfer"] == transfer
    await cluster.nothing_held()


@pytest.mark.parametrize(("tokens", "told"), [(10, []), (20, ["expect", "forget"]), (100, ["expect", "forget"])])
async def test_decode_expects_only_what_has_whole_chunks_while_prefill_works(cluster, tokens, told):
    _, decode = await pair(cluster, resume=1, kv_chunk_tokens=64)
    assert (await cluster.chat("abcd" * tokens)).status == 200
    await soon(lambda: [what for what, _ in decode.kv_calls] == told)
    await cluster.nothing_held()
    assert [what for what, _ in decode.kv_calls] == told
    assert decode.bodies("generate")[0]["kv_transfer_params"]["epd"]["transfer"]


async def test_what_decode_is_told_has_the_token_of_the_fleet(cluster_with):
    async with cluster_with(token="secret") as cluster:
        _, decode = await pair(cluster)
        await cluster.chat("x")
        await soon(lambda: len(decode.kv_calls) == 2)
        assert {seen.headers["Authorization"] for _, seen in decode.kv_calls} == {"Bearer secret"}


async def test_a_forget_never_overtakes_what_it_is_about(cluster):
    _, decode = await pair(cluster)
    decode.does.kv_hold = asyncio.Event()
    assert (await cluster.chat("x")).status == 200
    await asyncio.sleep(0.05)
    assert [what for what, _ in decode.kv_calls] == ["expect"]
    decode.does.kv_hold.set()
    await soon(lambda: [what for what, _ in decode.kv_calls] == ["expect", "forget"])


async def test_nobody_waits_for_a_decode_instance_that_cannot_be_told(cluster, single):
    _, decode = await pair(cluster)
    decode.does.kv_status = 500
    await same(cluster, single, "x")


async def test_the_agents_of_one_kv_cache_are_expected_together(cluster, single):
    await cluster.add("P", **{**P, "kv_agents": ("tcp://p:1", "tcp://p:2"), "kv_shards": 2})
    decode = await cluster.add("D", **{**D, "kv_shards": 2})
    await same(cluster, single, "x")
    await soon(lambda: [what for what, _ in decode.kv_calls] == ["expect", "forget"])
    assert decode.kv_calls[0][1].body["rank"] == 0


async def test_of_several_data_parallel_ranks_none_is_expected(cluster, single):
    await cluster.add("P", **{**P, "kv_agents": ("tcp://p:1", "tcp://p:2")})
    decode = await cluster.add("D", **D)
    await same(cluster, single, "x")
    assert ([sent for _, sent in decode.taken], decode.kv_calls) == ([1], [])


async def test_a_failed_prefill_is_forgotten(cluster):
    prefill, decode = await pair(cluster)
    prefill.does.status, prefill.does.body = 500, {"error": {"message": "broken"}}
    assert (await cluster.chat("x", stream=True)).status == 500
    await soon(lambda: sorted(what for what, _ in decode.kv_calls) == ["expect"] * 2 + ["forget"] * 2)
    await cluster.nothing_held()


async def test_a_client_that_leaves_is_forgotten(cluster):
    prefill, decode = await pair(cluster)
    prefill.does.hold = asyncio.Event()
    asked = asyncio.create_task(cluster.chat("x"))
    await prefill.arrived.wait()
    asked.cancel()
    await soon(lambda: [what for what, _ in decode.kv_calls] == ["expect", "forget"])
    await cluster.nothing_held()


@pytest.mark.parametrize(("wait", "told"), [("silent", ["forget"]), ("gate", [])])
async def test_prefill_keeps_nothing_for_a_client_that_leaves_before_decode_has_begun(cluster, wait, told):
    prefill, decode = await pair(cluster, resume=1, kv_chunk_tokens=64)
    setattr(decode.does, wait, asyncio.Event())
    body = {"model": "tiny", "stream": True, "messages": [{"role": "user", "content": "go on"}]}
    response = await cluster.session.post(cluster.url + "/v1/chat/completions", json=body)
    events = 1 if wait == "silent" else 2
    for _ in range(events):
        await response.content.readuntil(b"\n\n")
    await soon(lambda: decode.seen)
    response.close()
    await soon(lambda: decode.seen[0].outcome == "aborted")
    await cluster.nothing_held()
    await soon(lambda: [what for what, _ in prefill.kv_calls] == told)
    assert [what for what, _ in decode.kv_calls] == []


@pytest.mark.parametrize(
    "kv",
    [None, {"epd": None}, {"epd": {}}, {"epd": {"transfer": "another", "epoch": "p0-kv"}}, {"do_remote_prefill": True}],
)
@pytest.mark.parametrize("fields", [{}, {"seed": 1}], ids=["resumed", "plain"])
async def test_a_prefill_that_offers_nothing_is_an_error(cluster, kv, fields):
    prefill, decode = await pair(cluster)
    prefill.does.change = lambda answer: answer.update(kv_transfer_params=kv)
    answer = await cluster.chat("x", stream=True, **fields)
    assert answer.status == 502
    assert f"{prefill.instance_id} did not offer its KV cache" in answer.error["message"]
    assert decode.seen == []


@pytest.mark.parametrize(
    "change", [{"choices": []}, {"choices": None}, {"choices": [{}]}, {"usage": None}, {"usage": {"prompt_tokens": 1}}]
)
async def test_a_prefill_that_answers_something_else_is_an_error(cluster, change):
    prefill, _ = await pair(cluster)
    prefill.does.change = lambda answer: answer.update(change)
    answer = await cluster.chat("x")
    assert answer.status == 502
    assert "gave no usable answer of one token" in answer.error["message"]


@pytest.mark.parametrize("first", [None, "7", True])
async def test_a_prefill_that_names_no_first_token_goes_the_plain_way(cluster, single, first):
    prefill, decode = await pair(cluster)
    prefill.does.change = lambda answer: answer["kv_transfer_params"]["epd"].update(first=first)
    await same(cluster, single, "x", stream=True)
    assert [sent for _, sent in decode.taken] == [0]


@pytest.mark.parametrize(("status", "body"), [(500, {"error": {"message": "lost", "code": 500}}), (400, b"no")])
async def test_a_decode_that_fails_after_the_first_token_ends_the_stream_with_an_error(cluster, status, body):
    _, decode = await pair(cluster)
    decode.does.status, decode.does.body = status, body
    answer = await cluster.chat("x", stream=True)
    assert answer.status == 200
    _, first, failed = answer.events
    assert first["choices"][0]["delta"]["content"].startswith(" w")
    assert "error" in failed
    assert (await cluster.chat("x")).status == status


async def test_a_decode_that_breaks_off_again_and_again_ends_the_stream_with_an_error(cluster_with):
    async with cluster_with(retries=0) as cluster:
        _, decode = await pair(cluster)
        decode.does.break_after = 3
        *said, failed = (await cluster.chat("x", stream=True)).events
        assert len(said) == 4
        assert "broke off" in failed["error"]["message"]


@pytest.mark.parametrize("change", [{"choices": []}, {"usage": None}, {"choices": [{"index": 0}]}])
async def test_a_whole_answer_that_cannot_be_put_together_is_an_error(cluster, change):
    _, decode = await pair(cluster)
    decode.does.change = lambda answer: answer.update(change)
    answer = await cluster.chat("x")
    assert answer.status == 502
    assert "gave no usable answer to go on with" in answer.error["message"]


async def test_another_decode_goes_on_with_a_whole_answer(cluster, single):
    prefill, chosen = await pair(cluster)
    others = [await cluster.add("D", **{**D, "epoch": f"d{index}"}, limits={"resume": index}) for index in range(2)]
    prefill.does.hold = asyncio.Event()
    asked = asyncio.create_task(same(cluster, single, "x"))
    await prefill.arrived.wait()
    await soon(lambda: chosen.kv_calls)
    await chosen.stop()
    prefill.does.hold.set()
    await asked
    assert [[sent for _, sent in each.taken] for each in (chosen, *others)] == [[], [], [1]]
    assert await cluster.metric('first_tokens_total{source="prefill"}') == 1


async def test_a_decode_that_leaves_meanwhile_is_told_to_forget(cluster, single):
    prefill, chosen = await pair(cluster)
    prefill.does.hold = asyncio.Event()
    asked = asyncio.create_task(same(cluster, single, "x", stream=True))
    await prefill.arrived.wait()
    await soon(lambda: chosen.kv_calls)
    await cluster.remove(chosen)
    other = await cluster.add("D", **D)
    prefill.does.hold.set()
    await asked
    assert [sent for _, sent in other.taken] == [1]
    await soon(lambda: [what for what, _ in chosen.kv_calls] == ["expect", "forget"])


async def test_without_one_that_can_go_on_the_request_fails(cluster):
    prefill, chosen = await pair(cluster)
    await cluster.add("D", **{**D, "epoch": "d1"}, limits={"resume": 0})
    prefill.does.hold = asyncio.Event()
    asked = asyncio.create_task(cluster.chat("x"))
    await prefill.arrived.wait()
    await soon(lambda: chosen.kv_calls)
    await cluster.remove(chosen)
    prefill.does.hold.set()
    answer = await asked
    assert (answer.status, answer.error["message"]) == (503, "no decode instance is available any more")


async def test_an_unreachable_prefill_is_passed_over_with_a_new_offer(cluster, single):
    gone, decode = await pair(cluster)
    await gone.stop()
    prefill = await cluster.add("P", **{**P, "epoch": "p1"})
    for _ in range(2):
        await same(cluster, single, "x")
    await soon(lambda: len(decode.kv_calls) == 6)
    told = [(what, seen.body["transfer"]) for what, seen in decode.kv_calls]
    assert len({transfer for _, transfer in told}) == 3
    assert sorted(what for what, _ in told) == ["expect"] * 3 + ["forget"] * 3
    assert len(prefill.seen) == 2


async def test_prefill_and_decode_of_different_connectors_are_not_combined(cluster):
    prefill = await cluster.add("P", **P)
    decode = await cluster.add("D", **{**D, "kv": "nixl"})
    answer = await cluster.chat("x")
    assert answer.status == 503
    assert answer.error["message"] == (
        f"no decode instance can take over the KV caches of {prefill.instance_id}:"
        f" its KV connector is epd, that of {decode.instance_id} is nixl"
    )
    other = await cluster.add("D", **D)
    assert (await cluster.chat("x")).status == 200
    assert (len(decode.seen), len(other.seen)) == (0, 1)


async def test_over_the_connector_of_vllm_decode_generates_all_tokens(cluster, single):
    prefill = await cluster.add("P", kv="nixl")
    decode = await cluster.add("D", kv="nixl")
    assert (await cluster.chat("x y")).text == "x y"
    assert prefill.bodies("prefill")[0]["kv_transfer_params"]["do_remote_decode"] is True
    assert decode.bodies("generate")[0]["kv_transfer_params"]["do_remote_prefill"] is True
    assert decode.kv_calls == []
    assert await cluster.metric('first_tokens_total{source="prefill"}') == 0


async def test_the_agents_of_kv_caches_are_peers_under_a_name_of_their_own(cluster):
    await cluster.add("EP", **P, agents=("tcp://e:1",))
    peers = (await cluster.call("GET", "/epd/peers")).json["peers"]
    assert peers == {"p0": ["tcp://e:1"], "p0-kv": ["tcp://p:1"]}
