# SPDX-License-Identifier: Apache-2.0
"""A topology gives the tokens of a single server that never heard of roles."""

import asyncio
from collections.abc import Callable

import pytest

from tests.engine import stages
from tests.engine.system import System
from tests.engine.traffic import Answer, Json, ask, chat, image_part, images_of, mixed_requests
from vllm_epd.demo import FAMILIES

pytestmark = [pytest.mark.engine, pytest.mark.slow]

TOLERANCE = {"float32": 1e-4, "bfloat16": 1e-2}
CASES = [(family, dtype) for family in FAMILIES for dtype in TOLERANCE]
StartSystem = Callable[[str, str], System]


def differences(got: Answer, wanted: Answer, tolerance: float) -> list[str]:
    """What differs, in words; empty when the answers are equal within the tolerance."""
    found = []
    if got.tokens != wanted.tokens:
        found.append(f"tokens {got.tokens} != {wanted.tokens}")
    elif (worst := max(abs(a - b) for a, b in zip(got.logprobs, wanted.logprobs, strict=True))) > tolerance:
        found.append(f"log probabilities differ by {worst:.2e}")
    if (got.text, got.finish_reason) != (wanted.text, wanted.finish_reason):
        found.append(f"{got.text!r}, {got.finish_reason} != {wanted.text!r}, {wanted.finish_reason}")
    if got.usage["prompt_tokens"] != wanted.usage["prompt_tokens"]:
        found.append(f"usage {got.usage} != {wanted.usage}")
    return found


async def single_answers(system: System, requests: list[Json]) -> list[list[Answer]]:
    """For each request, the answers that the single server gives to it.

    In float32 one is enough. In bfloat16 the server differs from itself by one unit in the last place of a logit, here
    around 0.1, with what is cached and what else is in a batch. So it is asked with cold and with warm caches and for
    all at once; and it sees each image alone first, since a topology encodes the images of a request one by one.
    """
    if system.dtype == "bfloat16":
        for request in requests:
            for part in images_of(request):
                await ask(system.single, chat([part], max_tokens=1))
    rounds = [[await ask(system.single, request) for request in requests]]
    if system.dtype == "bfloat16":
        rounds.append([await ask(system.single, request) for request in requests])
        rounds.append(await asyncio.gather(*(ask(system.single, request) for request in requests)))
    return [list(answers) for answers in zip(*rounds, strict=True)]


def unlike_all(got: Answer, wanted: list[Answer], tolerance: float) -> list[str]:
    """What differs from the first of the answers, unless one of them is equal."""
    found = [differences(got, each, tolerance) for each in wanted]
    return found[0] if all(found) else []


@pytest.mark.parametrize(("family", "dtype"), CASES)
async def test_sixteen_requests_at_once_twice_give_the_tokens_of_a_single_server(
    start_system: StartSystem, family: str, dtype: str
) -> None:
    system = start_system(family, dtype)
    requests = mixed_requests()
    wanted = await single_answers(system, requests)
    assert len({answers[0].tokens for answers in wanted}) >= 14, "the model hardly looks at its input"
    for attempt in ("cold", "warm"):
        answers = await asyncio.gather(*(ask(system.router, request) for request in requests))
        failures = {
            f"{attempt} {index}": found
            for index, (got, want) in enumerate(zip(answers, wanted, strict=True))
            if (found := unlike_all(got, want, TOLERANCE[dtype]))
        }
        assert not failures


@pytest.mark.parametrize(("family", "dtype"), [case for case in CASES if case[1] == "float32"])
async def test_a_swapped_embedding_gives_other_tokens(start_system: StartSystem, family: str, dtype: str) -> None:
    """The control: without it, equal tokens could mean that embeddings do not matter."""
    system = start_system(family, dtype)
    shown = await stages.encode(system, image_part(901))
    other = await stages.encode(system, image_part(902))
    wanted = await ask(system.single, chat([image_part(901)]))
    right = await stages.prefill_and_decode(system, chat([]), [shown])
    swapped = await stages.prefill_and_decode(system, chat([]), [stages.swapped(shown, other)])
    assert not differences(right, wanted, TOLERANCE[dtype])
    assert swapped.tokens != wanted.tokens
