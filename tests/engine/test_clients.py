# SPDX-License-Identifier: Apache-2.0
"""Clients that were written for any OpenAI-compatible server work unchanged."""

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
from openai import AsyncOpenAI, NotFoundError

from tests.engine.system import BIN, MODEL, System
from tests.engine.traffic import TIMEOUT_S, image_part
from vllm_epd.demo import ensure_model

pytestmark = [pytest.mark.engine, pytest.mark.slow]

BENCH_LIMIT_S = 300
BENCH_REQUESTS = 6
BENCH_OUTPUT_TOKENS = 16


def client_of(url: str) -> AsyncOpenAI:
    """A client that knows nothing of us and tries once."""
    return AsyncOpenAI(base_url=f"{url}/v1", api_key="any", timeout=TIMEOUT_S, max_retries=0)


def asked(*seeds: int, **fields: Any) -> dict[str, Any]:
    """Arguments of a chat about some images."""
    content = [*(image_part(seed) for seed in seeds), {"type": "text", "text": "What do you see?"}]
    return {
        "model": MODEL,
        "messages": [{"role": "user", "content": content}],
        "max_tokens": 12,
        "temperature": 0,
        **fields,
    }


async def test_chat_with_images(system: System) -> None:
    wanted = await client_of(system.single).chat.completions.create(**asked(3000, 3001))
    got = await client_of(system.router).chat.completions.create(**asked(3000, 3001))
    assert got.choices[0].message.content == wanted.choices[0].message.content
    assert got.choices[0].finish_reason == wanted.choices[0].finish_reason
    assert got.usage is not None
    assert wanted.usage is not None
    assert (got.usage.prompt_tokens, got.usage.completion_tokens) == (
        wanted.usage.prompt_tokens,
        wanted.usage.completion_tokens,
    )


async def streamed(url: str, **arguments: Any) -> dict[int, str]:
    """The text of each choice of a streamed chat."""
    texts: dict[int, str] = {}
    async for chunk in await client_of(url).chat.completions.create(**arguments, stream=True):
        for choice in chunk.choices:
            texts[choice.index] = texts.get(choice.index, "") + (choice.delta.content or "")
    return texts


@pytest.mark.parametrize("n", [1, 2])
async def test_streams(system: System, n: int) -> None:
    arguments = asked(3010 + n, n=n, temperature=0.8, seed=5)
    wanted = await streamed(system.single, **arguments)
    assert len(wanted) == n
    assert await streamed(system.router, **arguments) == wanted


async def test_several_choices(system: System) -> None:
    arguments = asked(3020, n=2, temperature=0.8, seed=7)
    wanted = await client_of(system.single).chat.completions.create(**arguments)
    got = await client_of(system.router).chat.completions.create(**arguments)
    texts = [choice.message.content for choice in wanted.choices]
    assert len(set(texts)) == 2
    assert [choice.message.content for choice in got.choices] == texts
    assert [choice.index for choice in got.choices] == [0, 1]
    assert got.usage is not None
    assert wanted.usage is not None
    assert got.usage.total_tokens == wanted.usage.total_tokens


async def test_completions(system: System) -> None:
    arguments = {"model": MODEL, "prompt": ["The red boat", "A yellow ball"], "max_tokens": 10, "temperature": 0}
    wanted = await client_of(system.single).completions.create(**arguments)
    got = await client_of(system.router).completions.create(**arguments)
    assert [choice.text for choice in got.choices] == [choice.text for choice in wanted.choices]
    assert len(got.choices) == 2


async def test_models(system: System) -> None:
    wanted = await client_of(system.single).models.list()
    got = await client_of(system.router).models.list()
    assert [model.id for model in got.data] == [model.id for model in wanted.data] == [MODEL]


async def test_an_unknown_model_is_an_error_of_its_own(system: System) -> None:
    with pytest.raises(NotFoundError, match="nobody"):
        await client_of(system.router).chat.completions.create(**asked() | {"model": "nobody"})


async def test_vllm_bench_serve(system: System, tmp_path: Path) -> None:
    command = [str(BIN / "vllm"), "bench", "serve", "--backend", "openai-chat"]
    command += ["--base-url", system.router, "--endpoint", "/v1/chat/completions"]
    command += ["--model", MODEL, "--tokenizer", str(ensure_model(system.family))]
    command += ["--dataset-name", "random-mm", "--random-input-len", "40"]
    command += ["--random-output-len", str(BENCH_OUTPUT_TOKENS), "--num-prompts", str(BENCH_REQUESTS)]
    command += ["--random-mm-base-items-per-request", "2", "--random-mm-limit-mm-per-prompt", '{"image": 2}']
    command += ["--random-mm-bucket-config", "{(224, 224, 1): 0.5, (256, 448, 1): 0.5}"]
    command += ["--save-result", "--result-dir", str(tmp_path), "--result-filename", "bench.json", "--disable-tqdm"]
    command += ["--ignore-eos", "--temperature", "0"]
    child = await asyncio.create_subprocess_exec(
        *command, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
    )
    try:
        async with asyncio.timeout(BENCH_LIMIT_S):
            output, _ = await child.communicate()
    except TimeoutError:
        child.kill()
        raise
    assert child.returncode == 0, output.decode(errors="replace")[-4000:]
    result = json.loads((tmp_path / "bench.json").read_text())
    assert (result["completed"], result["failed"]) == (BENCH_REQUESTS, 0)
    assert result["total_output_tokens"] == BENCH_REQUESTS * BENCH_OUTPUT_TOKENS
