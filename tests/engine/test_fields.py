# SPDX-License-Identifier: Apache-2.0
"""Fields of a request reach the stage that needs them: the whole answer is that of a single server."""

from typing import Any

import pytest

from tests.engine import calls
from tests.engine.system import MODEL, System
from tests.engine.traffic import CHAT, TIMEOUT_S, Json, chat, image_part

pytestmark = [pytest.mark.engine, pytest.mark.slow]

TOOL = {
    "type": "function",
    "function": {
        "name": "look",
        "parameters": {
            "type": "object",
            "properties": {"where": {"type": "string", "enum": ["here", "there"]}},
            "required": ["where"],
        },
    },
}
NAMED = {"type": "function", "function": {"name": "look"}}
SCHEMA = {"type": "object", "properties": {"n": {"type": "integer", "maximum": 9}}, "required": ["n"]}
VARIANTS: dict[str, Json] = {
    "stop": {"stop": ["a", "e"], "max_tokens": 40},
    "include_stop": {"stop": ["a", "e"], "include_stop_str_in_output": True, "max_tokens": 40},
    "n_seeded": {"n": 3, "temperature": 0.9, "seed": 5},
    "bias": {"logit_bias": {"70": 50}},
    "allowed": {"allowed_token_ids": [60, 61, 62]},
    "penalties": {"presence_penalty": 1.5, "frequency_penalty": 0.5, "repetition_penalty": 1.3},
    "top": {"temperature": 0.7, "top_p": 0.8, "top_k": 5, "min_p": 0.01, "seed": 3},
    "bad_words": {"bad_words": ["ain"]},
    "max_completion_tokens": {"max_tokens": None, "max_completion_tokens": 5},
    "tool_required": {"tools": [TOOL], "tool_choice": "required", "max_tokens": 60},
    "tool_named": {"tools": [TOOL], "tool_choice": NAMED, "max_tokens": 60},
    "tool_none": {"tools": [TOOL], "tool_choice": "none"},
    "json_schema": {
        "response_format": {"type": "json_schema", "json_schema": {"name": "n", "schema": SCHEMA}},
        "max_tokens": 30,
    },
    "continued": {"add_generation_prompt": False, "continue_final_message": True},
}
DIFFERS = ("id", "created", "system_fingerprint")
"""Parts that are random, or tell one server from another."""


async def answer(url: str, path: str, body: Json) -> Any:
    """The JSON answer without what is random in it."""
    async with calls.client(timeout=TIMEOUT_S) as client:
        response = await client.post(url + path, json=body)
    assert response.status_code == 200, response.text
    return settled(response.json())


def settled(value: Any) -> Any:
    """`value` without ids and times, and with floats at three digits."""
    if isinstance(value, dict):
        return {key: settled(item) for key, item in value.items() if key not in DIFFERS}
    if isinstance(value, list):
        return [settled(item) for item in value]
    return round(value, 3) if isinstance(value, float) else value


@pytest.mark.parametrize("variant", VARIANTS)
async def test_chat(system: System, variant: str) -> None:
    body = chat([image_part(77)], **VARIANTS[variant])
    if variant == "continued":
        body["messages"].append({"role": "assistant", "content": "The"})
    wanted = await answer(system.single, CHAT, body)
    assert await answer(system.router, CHAT, body) == wanted


@pytest.mark.parametrize(
    "fields",
    [
        {"prompt": "hello there"},
        {"prompt": ["hello", "the picture shows", "what"], "logprobs": 2},
        {"prompt": "hello", "n": 2, "temperature": 0.8, "seed": 11},
        {"prompt": [60, 61, 62, 63]},
        {"prompt": "hello", "echo": True},
    ],
)
async def test_completions(system: System, fields: Json) -> None:
    body = {"model": MODEL, "max_tokens": 8, "temperature": 0, **fields}
    assert await answer(system.router, "/v1/completions", body) == await answer(system.single, "/v1/completions", body)
