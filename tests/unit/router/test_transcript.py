# SPDX-License-Identifier: Apache-2.0
"""What another instance needs to go on with a stream is noted, and the client gets what it asked for."""

import pytest

pytest.importorskip("vllm")

from tests.unit.router.test_opening import BODIES, PROMPT, TOKENS, WAYS, vllm  # noqa: E402
from vllm_epd.router import sse  # noqa: E402
from vllm_epd.router.transcript import Transcript  # noqa: E402

HELD = ("", 13)


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
@pytest.mark.parametrize(("api", "body"), BODIES.values(), ids=BODIES)
@pytest.mark.parametrize("at_once", [True, False])
async def test_the_client_gets_the_stream_that_vllm_gives_without_token_ids(api, body, way, at_once):
    body = body | way
    wanted = await vllm(api, body, TOKENS, PROMPT, 100)
    told = await vllm(api, body | {"return_token_ids": True}, TOKENS, PROMPT, 100)
    assert told != wanted
    transcript = Transcript(wants_usage="stream_options" in way)
    parts = [told] if at_once else list(sse.blocks(told))
    assert b"".join(transcript.pass_on(part) for part in parts) == wanted
    assert (transcript.tokens, transcript.created) == ([token for _, token in TOKENS], 100)
    assert (transcript.finished, transcript.whole) == (True, True)


@pytest.mark.parametrize(("api", "body"), BODIES.values(), ids=BODIES)
async def test_a_token_whose_text_is_held_back_is_sent_with_its_text(api, body):
    tokens = [TOKENS[0], HELD, HELD, TOKENS[1]]
    body = body | WAYS["stream"]
    wanted = await vllm(api, body, tokens, PROMPT, 100)
    told = list(sse.blocks(await vllm(api, body | {"return_token_ids": True}, tokens, PROMPT, 100)))
    transcript, out, known = Transcript(), b"", []
    for block in told:
        out += transcript.pass_on(block)
        known.append(len(transcript.tokens))
    assert out == wanted
    assert known == [*([0] if api.value.endswith("chat/completions") else []), 1, 1, 1, 4, 4]


async def test_what_was_held_back_is_forgotten_when_another_instance_goes_on():
    api, body = BODIES["chat with logprobs"]
    asked = body | WAYS["stream"] | {"return_token_ids": True}
    first = list(sse.blocks(await vllm(api, asked, [TOKENS[0], HELD, TOKENS[1]], PROMPT, 100)))
    transcript = Transcript()
    begun = b"".join(transcript.pass_on(block) for block in first[:3])
    transcript.go_on()
    _, *rest = sse.blocks(await vllm(api, asked, [HELD, TOKENS[1]], [*PROMPT, 10], 100))
    wanted = await vllm(api, body | WAYS["stream"], [TOKENS[0], HELD, TOKENS[1]], PROMPT, 100)
    assert begun + b"".join(transcript.pass_on(block) for block in rest) == wanted


def test_a_stream_is_whole_once_nothing_but_its_end_is_missing():
    said = b'data: {"created":7,"choices":[{"delta":{"content":"a"},"finish_reason":"stop","token_ids":[1]}]}\n\n'
    usage = b'data: {"created":7,"choices":[],"usage":{"prompt_tokens":1}}\n\n'
    plain, counted = Transcript(), Transcript(wants_usage=True)
    for each in (plain, counted):
        each.pass_on(said)
    assert (plain.whole, counted.whole) == (True, False)
    counted.pass_on(usage)
    assert counted.whole


def test_generated_text_is_never_taken_for_what_is_searched_for():
    text = rb"\"token_ids\":[1,2] \"finish_reason\":\"stop\" \"prompt_token_ids\":[3]"
    block = b'data: {"created":7,"choices":[{"delta":{"content":"' + text + b'"},"finish_reason":null}]}\n\n'
    transcript = Transcript()
    assert transcript.pass_on(block) == block
    assert (transcript.tokens, transcript.finished) == ([], False)
