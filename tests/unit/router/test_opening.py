# SPDX-License-Identifier: Apache-2.0
"""An answer put together from two instances has the form that vLLM itself gives to the same tokens."""

import json

import pytest

pytest.importorskip("vllm")

from vllm.entrypoints.generate.base.protocol import RequestResponseMetadata  # noqa: E402
from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest  # noqa: E402
from vllm.entrypoints.openai.chat_completion.serving import OpenAIServingChat  # noqa: E402
from vllm.entrypoints.openai.completion.protocol import CompletionRequest  # noqa: E402
from vllm.entrypoints.openai.completion.serving import OpenAIServingCompletion  # noqa: E402
from vllm.logprobs import Logprob  # noqa: E402
from vllm.outputs import CompletionOutput, RequestOutput  # noqa: E402

from vllm_epd.router.continuation import StreamContinuation, continued_answer  # noqa: E402
from vllm_epd.router.opening import Opening  # noqa: E402
from vllm_epd.router.requests import Api, parse_request  # noqa: E402

PROMPT = [1, 2, 3]
FIRST, SECOND, LAST = (" a", 10), (' "usage":{', 11), (" c", 12)
TOKENS = [FIRST, SECOND, LAST]
WAYS = {
    "stream": {"stream": True},
    "usage": {"stream": True, "stream_options": {"include_usage": True}},
    "each": {"stream": True, "stream_options": {"include_usage": True, "continuous_usage_stats": True}},
}
CHAT = {"model": "m", "messages": [{"role": "user", "content": "x"}]}
BODIES = {
    "chat": (Api.CHAT, CHAT),
    "continued chat": (Api.CHAT, {**CHAT, "add_generation_prompt": False}),
    "chat with logprobs": (Api.CHAT, {**CHAT, "logprobs": True, "top_logprobs": 1}),
    "completion": (Api.COMPLETION, {"model": "m", "prompt": "x"}),
}


def outputs(tokens, prompt, *, logprobs, whole, finish="length"):
    """What the engine gives: one token at a time, or all at once."""
    steps = [tokens] if whole else [[token] for token in tokens]
    for number, step in enumerate(steps, 1):
        said = CompletionOutput(
            index=0,
            text="".join(text for text, _ in step),
            token_ids=[token for _, token in step],
            cumulative_logprob=None,
            logprobs=[{token: Logprob(-0.5, 1, text)} for text, token in step] if logprobs else None,
            finish_reason=finish if number == len(steps) else None,
        )
        yield RequestOutput("r", "x", prompt, None, [said], number == len(steps), num_cached_tokens=2)


async def looped(items):
    for item in items:
        yield item


def server(kind):
    """vLLM's object behind an API, without an engine."""
    made = object.__new__(kind)
    made.parser_cls = made.request_logger = None
    made.enable_force_include_usage = made.enable_log_outputs = made.enable_per_request_metrics = False
    made._include_reasoning_tokens_details = made.enable_auto_tools = made.return_tokens_as_token_ids = False
    made.enable_prompt_tokens_details, made.response_role, made.system_fingerprint = True, "assistant", "fp"
    made.renderer = None
    return made


async def vllm(api, body, tokens, prompt, created, finish="length"):
    """What a vLLM server answers: the events of a stream, or the whole answer."""
    stream, meta = bool(body.get("stream")), RequestResponseMetadata(request_id="r")
    made = list(outputs(tokens, prompt, logprobs=body.get("logprobs"), whole=not stream, finish=finish))
    if api is Api.CHAT:
        request, chat = ChatCompletionRequest(**body), server(OpenAIServingChat)
        arguments = (request, looped(made), "chatcmpl-r", "m", [], None, meta)
        if not stream:
            return dated((await chat.chat_completion_full_generator(*arguments)).model_dump_json().encode(), created)
        return dated(
            "".join([each async for each in chat.chat_completion_stream_generator(*arguments)]).encode(), created
        )
    request, completion = CompletionRequest(**body), server(OpenAIServingCompletion)
    if not stream:
        answer = completion.request_output_to_completion_response(made, request, "cmpl-r", created, "m", None, meta)
        return answer.model_dump_json().encode()
    numbered = looped([(0, each) for each in made])
    events = completion.completion_stream_generator(
        request, [None], numbered, "cmpl-r", created, "m", num_prompts=1, tokenizer=None, request_metadata=meta
    )
    return "".join([each async for each in events]).encode()


def dated(raw, created):
    """The same at another time."""
    lines = []
    for line in raw.split(b"\n"):
        prefix = b"data: " if line.startswith(b"data: {") else b""
        text = line.removeprefix(prefix)
        dressed = json.loads(text) | {"created": created} if text.startswith(b"{") else None
        lines.append(line if dressed is None else prefix + json.dumps(dressed, separators=(",", ":")).encode())
    return b"\n".join(lines)


def read(events):
    return [json.loads(each.removeprefix(b"data: ")) for each in events.split(b"\n\n") if each.startswith(b"data: {")]


async def opening(api, body, *, finish="length"):
    asked = {name: value for name, value in body.items() if name not in ("stream", "stream_options")}
    answer = json.loads(await vllm(api, asked, [FIRST], PROMPT, 100, finish))
    request = parse_request(api, json.dumps(body).encode())
    return Opening.of(request, api.id_prefix + "r", {**answer, "id": "another"}, "p:1")


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
@pytest.mark.parametrize(("api", "body"), BODIES.values(), ids=BODIES)
@pytest.mark.parametrize("at_once", [True, False])
async def test_a_stream(api, body, way, at_once):
    body = body | way
    wanted = await vllm(api, body, TOKENS, PROMPT, 100)
    first = await opening(api, body)
    theirs = await vllm(api, body, [SECOND, LAST], [*PROMPT, FIRST[1]], 102)
    continuation = StreamContinuation(api, 1, first.created)
    blocks = [theirs] if at_once else [each + b"\n\n" for each in theirs.split(b"\n\n") if each]
    got = first.events() + b"".join(continuation.rewrite(block) for block in blocks)
    assert read(got) == read(wanted)
    assert got.endswith(b"data: [DONE]\n\n")


@pytest.mark.parametrize(("api", "body"), BODIES.values(), ids=BODIES)
async def test_a_whole_answer(api, body):
    wanted = json.loads(await vllm(api, body, TOKENS, PROMPT, 102))
    theirs = await vllm(api, body, [SECOND, LAST], [*PROMPT, FIRST[1]], 102)
    assert json.loads(continued_answer(await opening(api, body), theirs)) == wanted


@pytest.mark.parametrize("finish", ["length", "stop"])
@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
@pytest.mark.parametrize(("api", "body"), BODIES.values(), ids=BODIES)
async def test_a_stream_of_one_token(api, body, way, finish):
    body = body | way
    first = await opening(api, body, finish=finish)
    assert read(first.whole_stream()) == read(await vllm(api, body, [FIRST], PROMPT, 100, finish))


@pytest.mark.parametrize(("api", "body"), BODIES.values(), ids=BODIES)
async def test_a_whole_answer_of_one_token(api, body):
    first = await opening(api, body)
    assert json.loads(first.body()) == json.loads(await vllm(api, body, [FIRST], PROMPT, 100))


async def test_a_stream_is_passed_on_as_it_is_where_it_can_be():
    first = await opening(Api.CHAT, CHAT | {"stream": True})
    continuation = StreamContinuation(Api.CHAT, 1, first.created)
    role = b'data: {"created":100,"choices":[{"index":0,"delta":{"role":"assistant","content":""}}]}\n\n'
    said = b'data: {"odd" : [1.0],  "choices":[{"delta":{"content":"\\"usage\\":{ \\"created\\":7"}}]}\n\n'
    assert continuation.rewrite(b": keep-alive\n\n" + role + said) == b": keep-alive\n\n" + said
    assert continuation.rewrite(said) == said


@pytest.mark.parametrize(
    ("text", "whole"), [(" a", True), ("", False), ("\ufffd", False), ("a\ufffd", False), ("\ufffda", True)]
)
async def test_a_text_is_whole(text, whole):
    first = await opening(Api.CHAT, CHAT)
    first.choice["message"]["content"] = text
    assert first.is_whole is whole
