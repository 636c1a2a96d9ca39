# SPDX-License-Identifier: Apache-2.0
"""Prefill and decode over two tensor-parallel workers each: every rank hands its part of the KV cache to its like."""

import asyncio
import json
import re
from collections.abc import Callable, Iterator

import pytest

from tests.engine import calls
from tests.engine.gauges import metrics, until, wait_until_idle
from tests.engine.own_router import described, own_router
from tests.engine.system import BIN, MODEL, SHARED, System, process, wait_for_fleet
from tests.engine.test_exactness import TOLERANCE, differences
from tests.engine.test_first_token import first_tokens
from tests.engine.traffic import CHAT, Json, ask, ask_all, ask_in_turn, chat, image_part
from vllm_epd.connectors.kv_shape import CHUNK_TOKENS
from vllm_epd.demo import ensure_model, serve_args

pytestmark = [pytest.mark.engine, pytest.mark.slow]

SIZE = 2
MANY_TOKENS = 3000
"""Of an answer that is not over before its client has gone."""
STREAM: Json = {"stream": True, "stream_options": {"include_usage": True}}
TTL_S = 60
"""Workers wait for each other at full speed: where there are few cores, an instance may be silent for long."""
LOADED, CACHED = "vllm:external_prefix_cache_hits_total", "vllm:prefix_cache_hits_total"
"""Tokens of prompts whose KV cache came from P, and those that D held already."""
REQUESTS = {
    "text": chat([], "Describe one."),
    "streamed text": chat([], "Describe two.", **STREAM),
    "one image": chat([image_part(7000)], "Describe three."),
    "two images": chat([image_part(7001), image_part(7002)], "Describe four.", **STREAM),
    "several chunks": chat([image_part(7003)], "Describe five. " * 400),
}


@pytest.fixture(scope="module")
def wide(start_system: Callable[[str, str], System], tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    """One instance for each stage, of which P and D have two workers each, beside the system's single server."""
    system = start_system("qwen2.5-vl", "float32")
    folder = tmp_path_factory.mktemp("tensor-parallel")
    log = folder / "up.log"
    file = folder / "topology.json"
    arguments = ["--served-model-name", MODEL, "--dtype", system.dtype, *SHARED, *serve_args(system.family)]
    several = ["--tensor-parallel-size", str(SIZE)]
    roles = {"all": arguments, "P": several, "D": several}
    fleet = {"topology": "1E1P1D", "roles": roles, "router": {"ttl_s": TTL_S}}
    file.write_text(json.dumps({"model": str(ensure_model(system.family)), **fleet}))
    command = [str(BIN / "vllm-epd"), "up", "--config", str(file), "--port", "0", "--log-dir", str(folder)]
    with process(command, log) as child:
        router = wait_for_fleet(child, log)
        yield System(system.family, system.dtype, system.single, router)


async def by_rank(instance: str, name: str) -> list[float]:
    """A number of the KV pool of an instance, one for each of its workers."""
    async with calls.client() as client:
        text = (await client.get(f"{instance}/metrics")).text
    found = re.findall(rf'^vllm_epd:kv_pool_{name}\{{.*rank="(\d)".*\}} (\S+)$', text, re.MULTILINE)
    assert [int(rank) for rank, _ in found] == list(range(SIZE))
    return [float(value) for _, value in found]


async def test_tokens_are_those_of_a_single_server_and_every_rank_has_moved_its_part(wide: System) -> None:
    wanted = await ask_in_turn(wide.single, REQUESTS.values())
    got = await ask_all(wide.router, REQUESTS.values())
    tolerance = TOLERANCE[wide.dtype]
    failures = [differences(mine, want, tolerance) for mine, want in zip(got, wanted, strict=True)]
    assert not any(failures), dict(zip(REQUESTS, failures, strict=True))
    prompts = [answer.usage["prompt_tokens"] for answer in got]
    chunks = sum(-(-tokens // CHUNK_TOKENS) for tokens in prompts)
    assert chunks > len(prompts), "no prompt has several chunks"
    assert await first_tokens(wide.router, "prefill") == len(REQUESTS)
    (prefill,), (decode,) = wide.instances("prefill"), wide.instances("decode")
    assert await by_rank(prefill, "encoded_total") == [chunks] * SIZE
    assert await by_rank(decode, "fetched_total") == [chunks] * SIZE
    moved = await by_rank(decode, "fetched_bytes_total")
    assert moved == await by_rank(prefill, "raw_bytes_total")
    assert min(moved) == max(moved) > 0
    found = await metrics(decode)
    assert found[LOADED] + found[CACHED] == sum(prompts), "D computes no token of a prompt"
    assert found[LOADED] > 0


async def test_in_the_end_no_rank_holds_anything(wide: System) -> None:
    """After answers, and after clients that have gone before theirs was over."""
    lengths = (MANY_TOKENS, 60, MANY_TOKENS, 60)
    requests = [
        chat([image_part(7010 + number)], f"Describe end {number}.", max_tokens=length, ignore_eos=True)
        for number, length in enumerate(lengths)
    ]
    asked = [asyncio.create_task(ask(wide.router, request)) for request in requests]
    await asyncio.wait(asked, timeout=0.3)
    leaving, staying = asked[::2], asked[1::2]
    assert not any(each.done() for each in leaving)
    for each in leaving:
        each.cancel()
    answered = await asyncio.gather(*staying)
    assert all(len(answer.tokens) > 1 for answer in answered)
    await wait_until_idle(wide, 20.0)
    await until(lambda: _nothing_pinned(wide), 20.0)


async def test_another_size_on_the_other_side_is_refused_with_both_sizes(system: System, wide: System) -> None:
    chosen = (wide.instances("prefill")[0], system.instances("encode")[0], system.instances("decode")[0])
    infos = [await described(each) for each in chosen]
    async with own_router(infos) as router, calls.client() as client:
        for answer in (await client.get(f"{router}/ready"), await client.post(router + CHAT, json=REQUESTS["text"])):
            assert answer.status_code == 503
            said = answer.json()["error"]["message"]
            assert re.search(r"tensor-parallel size is 2, that of \S+ is 1; .*--epd-kv-connector nixl", said), said


async def _nothing_pinned(wide: System) -> bool:
    instances = (*wide.instances("prefill"), *wide.instances("decode"))
    return not any([sum(await by_rank(instance, "pinned")) for instance in instances])
