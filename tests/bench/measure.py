# SPDX-License-Identifier: Apache-2.0
"""Running the cases on one system."""

import asyncio
from collections.abc import Sequence
from time import perf_counter

from tests.bench import cpu
from tests.bench.cases import Case, ChatRequest
from tests.bench.client import Answer
from tests.bench.processes import Place
from tests.bench.results import Result, Results
from tests.bench.systems import Running, System

Workload = Sequence[tuple[Case, Sequence[ChatRequest], Sequence[ChatRequest]]]
"""Cases, each with its requests for warming up and those to measure."""


BUDGET_S = 45.0
"""After so long a case takes no further request, so that a slow system does not take for ever."""


async def measure(system: System, place: Place, workload: Workload, results: Results) -> None:
    """Start a system, run all cases on it one after the other, and stop it; add to `results`."""
    async with system.start(place) as running:
        for case, warmup, requests in workload:
            await _send_all(running, warmup, case.concurrency)
            results.add(await _run(system.name, running, case, requests))


async def _run(system: str, running: Running, case: Case, requests: Sequence[ChatRequest]) -> Result:
    servers = cpu.servers(running.urls)
    stages_before, cpu_before = await running.stage_seconds(), cpu.used(servers)
    start = perf_counter()
    answers = await _send_all(running, requests, case.concurrency)
    wall_s = perf_counter() - start
    cpu_after, stages_after = cpu.used(servers), await running.stage_seconds()
    count = len(answers)
    return Result(
        system,
        case,
        answers,
        wall_s,
        cpu={name: cpu_after[name].per_request(before, count) for name, before in cpu_before.items()},
        stage_s={name: (after - stages_before.get(name, 0.0)) / count for name, after in stages_after.items()},
    )


async def _send_all(running: Running, requests: Sequence[ChatRequest], concurrency: int) -> tuple[Answer, ...]:
    """The answers to as many requests, from the first on, as can be sent in time."""
    gate = asyncio.Semaphore(concurrency)
    deadline = perf_counter() + BUDGET_S

    async def send(request: ChatRequest) -> Answer | None:
        async with gate:
            return await running.send(request) if perf_counter() < deadline else None

    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(send(request)) for request in requests]
    return tuple(answer for task in tasks if (answer := task.result()))
