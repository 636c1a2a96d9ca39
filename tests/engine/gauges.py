# SPDX-License-Identifier: Apache-2.0
"""What instances say of their own load, and waiting until they hold nothing for anybody."""

import asyncio
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping

from tests.engine import calls
from tests.engine.system import System
from tests.engine.traffic import Json

POLL_S = 0.02
IDLE_POLL_S = 0.25
ROLES = ("encode", "prefill", "decode")
RUNNING = "vllm:num_requests_running"
WAITING = "vllm:num_requests_waiting"
KV_USAGE = "vllm:kv_cache_usage_perc"
GENERATED = "vllm:generation_tokens_total"
PROMPTED = "vllm:prompt_tokens_total"
FINISHED = "vllm:request_success_total"


async def metrics(instance: str) -> Counter[str]:
    """The metrics of an instance by name, each the sum over its labels."""
    async with calls.client() as client:
        response = await client.get(f"{instance}/metrics")
    assert response.status_code == 200, response.text
    sums: Counter[str] = Counter()
    for line in response.text.splitlines():
        if line and not line.startswith("#"):
            sample, _, value = line.rpartition(" ")
            sums[sample.partition("{")[0]] += float(value)
    return sums


async def gauge(instance: str, name: str) -> float:
    """One metric of an instance."""
    found = await metrics(instance)
    assert name in found, f"{instance} has no {name}"
    return found[name]


async def pool(instance: str) -> Json:
    """What an instance says of its embedding pool."""
    async with calls.client() as client:
        response = await client.get(f"{instance}/epd/pool")
    assert response.status_code == 200, response.text
    state: Json = response.json()
    return state


async def pinned(instance: str) -> int:
    """How many embeddings and chunks of KV caches a lease, a reader or a waiting request holds."""
    state = await pool(instance)
    return int(state["pinned"]) + int(state["kv"]["pinned"] if "kv" in state else 0)


async def outstanding(router: str) -> Counter[str]:
    """How many calls to the instances of each role the router is waiting for."""
    async with calls.client() as client:
        listed = (await client.get(f"{router}/epd/instances")).json()["instances"]
    return Counter({role: sum(each["outstanding"] for each in listed if each["roles"] == role) for role in ROLES})


async def held(instances: Mapping[str, str]) -> dict[str, float]:
    """What instances, given as URLs by name, still hold or do; empty when they are idle."""
    found: dict[str, float] = {}
    for name, instance in instances.items():
        measured = await metrics(instance)
        found |= {f"{name} {gauge}": measured[gauge] for gauge in (RUNNING, WAITING, KV_USAGE)}
        found[f"{name} pinned"] = await pinned(instance)
    return {name: value for name, value in found.items() if value}


async def wait_until_idle(system: System, within_s: float) -> float:
    """Seconds until the instances of a system hold nothing for anybody; fails after `within_s`."""
    urls = {f"{role} {number}": url for role in ROLES for number, url in enumerate(system.instances(role))}
    return await wait_until_nothing_is_held(urls, within_s)


async def wait_until_nothing_is_held(instances: Mapping[str, str], within_s: float) -> float:
    """Seconds until these instances hold nothing for anybody, seen twice in a row; fails after `within_s`."""
    start = time.monotonic()
    seen = 0
    while seen < 2:
        still = await held(instances)
        assert time.monotonic() - start < within_s, f"still held after {within_s:.0f} s: {still}"
        seen = 0 if still else seen + 1
        await asyncio.sleep(IDLE_POLL_S)
    return time.monotonic() - start


async def until(condition: Callable[[], Awaitable[bool]], within_s: float = 30.0) -> None:
    """Poll until `condition` holds; fails after `within_s`."""
    deadline = time.monotonic() + within_s
    while not await condition():
        assert time.monotonic() < deadline, f"it did not happen within {within_s:.0f} s"
        await asyncio.sleep(POLL_S)


async def alive(system: System) -> None:
    """Every instance and the router are healthy."""
    async with calls.client() as client:
        for url in (system.router, *(each for role in ROLES for each in system.instances(role))):
            response = await client.get(f"{url}/health")
            assert response.status_code == 200, f"{url}: {response.text}"
