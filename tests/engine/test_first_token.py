# SPDX-License-Identifier: Apache-2.0
"""Over our own KV connector P's token goes to the client at once, and the answers stay those of a single server."""

import json
import re

import pytest

from tests.engine import calls
from tests.engine.system import MODEL, System
from tests.engine.test_exactness import TOLERANCE, differences
from tests.engine.test_fields import NAMED, SCHEMA, TOOL, answer, settled
from tests.engine.traffic import CHAT, TIMEOUT_S, Json, ask_all, ask_in_turn, chat, image_part

pytestmark = [pytest.mark.engine, pytest.mark.slow]

COMPLETIONS = "/v1/completions"
USAGE: Json = {"stream": True, "stream_options": {"include_usage": True}}
EACH_USAGE: Json = {"stream": True, "stream_options": {"include_usage": True, "continuous_usage_stats": True}}
WAYS: dict[str, Json] = {"whole": {}, "stream": USAGE}
FORMAT = {"type": "json_schema", "json_schema": {"name": "n", "schema": SCHEMA}}

RESUMED: dict[str, Json] = {
    "greedy": {},
    "seeded greedy": {"seed": 3},
    "bias": {"logit_bias": {"70": 50}},
    "allowed": {"allowed_token_ids": [60, 61, 62]},
    "repetition": {"repetition_penalty": 1.3},
    "two tokens": {"max_tokens": 2},
    "one token": {"max_tokens": 1},
    "no end": {"ignore_eos": True, "skip_special_tokens": False},
    "stop token": {"stop_token_ids": list(range(60, 300))},
    "all the context": {"max_tokens": None, "stop_token_ids": list(range(60, 90))},
}
PLAIN: dict[str, Json] = {
    "penalties": {"presence_penalty": 1.5, "frequency_penalty": 0.5},
    "seeded": {"temperature": 0.8, "seed": 5},
    "stop": {"stop": ["a", "e"], "max_tokens": 40},
    "json": {"response_format": FORMAT, "max_tokens": 30},
    "tool": {"tools": [TOOL], "tool_choice": NAMED, "max_tokens": 60},
    "least": {"min_tokens": 6},
    "ids": {"return_token_ids": True},
}


@pytest.fixture
def router(system: System) -> str:
    return system.router


async def first_tokens(router: str, source: str) -> float:
    """How many answers began with a token of `source`."""
    async with calls.client(timeout=TIMEOUT_S) as client:
        text = (await client.get(router + "/metrics")).text
    found = re.search(rf'first_tokens_total{{source="{source}"}} (\S+)', text)
    return float(found[1]) if found else 0.0


async def streamed(url: str, path: str, body: Json) -> Json:
    """What a stream says in all, however its tokens were put into events."""
    async with calls.client(timeout=TIMEOUT_S) as client:
        response = await client.post(url + path, json=body)
    assert response.status_code == 200, response.text
    *data, done = [line.removeprefix("data: ") for line in response.text.splitlines() if line.startswith("data: ")]
    assert done == "[DONE]"
    chunks = [settled(json.loads(each)) for each in data]
    choices = [choice for chunk in chunks for choice in chunk["choices"]]
    return {
        "roles": [choice["delta"]["role"] for choice in choices if "role" in choice.get("delta", {})],
        "text": "".join(
            choice["delta"].get("content") or "" if "delta" in choice else choice["text"] for choice in choices
        ),
        "finish": [choice["finish_reason"] for choice in choices if choice["finish_reason"]],
        "usage": chunks[-1].get("usage"),
        "prompts": {chunk["usage"]["prompt_tokens"] for chunk in chunks if chunk.get("usage")},
    }


@pytest.mark.parametrize("images", [0, 1, 2])
@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
async def test_tokens_and_probabilities_are_those_of_a_single_server(
    system: System, router: str, images: int, way: Json
) -> None:
    asked = [
        chat([image_part(900 + 10 * images + item) for item in range(images)], f"Describe {n}.", **way)
        for n in range(3)
    ]
    before = await first_tokens(router, "prefill")
    wanted = await ask_in_turn(system.single, asked)
    got = await ask_all(router, asked)
    failures = [differences(mine, want, TOLERANCE[system.dtype]) for mine, want in zip(got, wanted, strict=True)]
    assert not any(failures), failures
    assert [each.usage["total_tokens"] for each in got] == [each.usage["total_tokens"] for each in wanted]
    assert await first_tokens(router, "prefill") == before + len(asked)


@pytest.mark.parametrize("fields", RESUMED.values(), ids=RESUMED)
async def test_what_may_go_on_does_so_and_says_the_same(system: System, router: str, fields: Json) -> None:
    body = chat([image_part(77)], **{"logprobs": False, "top_logprobs": 0, **fields})
    before = await first_tokens(router, "prefill")
    assert await answer(router, CHAT, body) == await answer(system.single, CHAT, body)
    assert await first_tokens(router, "prefill") == before + 1


@pytest.mark.parametrize("fields", PLAIN.values(), ids=PLAIN)
async def test_what_needs_its_history_says_the_same_the_plain_way(system: System, router: str, fields: Json) -> None:
    body = chat([image_part(77)], **{"logprobs": False, "top_logprobs": 0, **fields})
    before = await first_tokens(router, "decode")
    assert await answer(router, CHAT, body) == await answer(system.single, CHAT, body)
    assert await first_tokens(router, "decode") == before + 1


async def test_several_choices_say_the_same(system: System, router: str) -> None:
    body = chat([image_part(78)], n=2, temperature=0.8, seed=9, logprobs=False, top_logprobs=0)
    assert await answer(router, CHAT, body) == await answer(system.single, CHAT, body)


@pytest.mark.parametrize("way", [{"stream": True}, USAGE, EACH_USAGE], ids=["stream", "usage", "each"])
@pytest.mark.parametrize("max_tokens", [1, 2, 9])
async def test_streams_have_the_form_of_a_single_server(
    system: System, router: str, way: Json, max_tokens: int
) -> None:
    chatted = chat([image_part(79)], max_tokens=max_tokens, logprobs=False, top_logprobs=0, **way)
    completed = {"model": MODEL, "prompt": "hello there", "max_tokens": max_tokens, "temperature": 0, **way}
    for path, body in ((CHAT, chatted), (COMPLETIONS, completed)):
        assert await streamed(router, path, body) == await streamed(system.single, path, body)


async def test_completions_say_the_same(system: System, router: str) -> None:
    before = await first_tokens(router, "prefill")
    for fields in ({}, {"max_tokens": 1}, {"max_tokens": 9}):
        body = {"model": MODEL, "prompt": [60, 61, 62, 63], "temperature": 0, **fields}
        assert await answer(router, COMPLETIONS, body) == await answer(system.single, COMPLETIONS, body)
    assert await first_tokens(router, "prefill") == before + 3
