# SPDX-License-Identifier: Apache-2.0
"""One list of requests, sent to topologies that really run."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from experiments.reality.foreign import Foreign
from experiments.reality.serving import bench, serving, write_dataset
from vllm_epd.demo import ensure_model
from vllm_epd.planner.workload.requests import Request

QUIET = 0.1
"""Of the machine that others may use during a run."""

TRIES = 3


@dataclass(frozen=True, slots=True)
class Plan:
    """What is run.

    Attributes:
        demo: family of the demo model.
        topologies: such as `1E1PD`.
        rates: requests a second.
        requests: what is sent in each run; the first one is sent by the benchmark's warm-up too.
        output: tokens of output of each.
        seed: of arrivals and contents.
        port: of the router.
        logs: folder for logs and data sets.
    """

    demo: str
    topologies: Sequence[str]
    rates: Sequence[float]
    requests: Sequence[Request]
    output: int
    seed: int
    port: int
    logs: Path


def run_all(
    plan: Plan, done: Sequence[dict[str, Any]], keep: Callable[[list[dict[str, Any]]], None], console: Console
) -> list[dict[str, Any]]:
    """What was sent in each run, when, and what it took.

    A run in which others used too much of the machine is done again a few times, with the same arrivals and sizes but
    other pictures and words, since the servers would still know those; the quietest one counts.

    Args:
        plan: what is run.
        done: earlier runs; those of them that were quiet are not done again.
        keep: given all runs so far after each one, since they take minutes.
        console: told of each run.
    """
    found = {(each["topology"], each["rate"]): each for each in done if each["foreign_share"] <= QUIET}
    for topology in plan.topologies:
        if missing := [rate for rate in plan.rates if (topology, rate) not in found]:
            with serving(plan.demo, topology, plan.logs, plan.port) as url:
                start_s = _start_s(plan, url)
                for rate in missing:
                    found[topology, rate] = _quiet_run(plan, url, topology, rate, start_s, console)
                    keep(list(found.values()))
    return [found[topology, rate] for topology in plan.topologies for rate in plan.rates]


def _quiet_run(plan: Plan, url: str, topology: str, rate: float, start_s: float, console: Console) -> dict[str, Any]:
    tries: list[dict[str, Any]] = []
    while len(tries) < TRIES and all(each["foreign_share"] > QUIET for each in tries):
        number = plan.rates.index(rate)
        contents = number + len(plan.rates) * len(tries)
        tries.append(_run(plan, url, topology, rate, plan.seed + number, contents, start_s))
        console.print(f"{topology} at {rate}/s: others used {tries[-1]['foreign_share']:.1%} of the machine")
    return min(tries, key=lambda each: float(each["foreign_share"]))


def _start_s(plan: Plan, url: str) -> float:
    """Processor time that the benchmark takes to start, with as many requests to warm up but one to measure."""
    dataset = plan.logs / "start.jsonl"
    write_dataset(dataset, plan.requests[:1], plan.seed)
    return bench(url, plan.demo, ensure_model(plan.demo), dataset, 1, plan.output, 1.0, plan.seed).client_s


def _run(
    plan: Plan, url: str, topology: str, rate: float, arrivals: int, contents: int, start_s: float
) -> dict[str, Any]:
    folder, dataset = ensure_model(plan.demo), plan.logs / f"{topology}-{rate}.jsonl"
    write_dataset(dataset, plan.requests, (plan.seed, contents))
    with Foreign() as foreign:
        seen = bench(url, plan.demo, folder, dataset, len(plan.requests), plan.output, rate, arrivals)
    sent = [
        {
            "at": each.at,
            "prompt_tokens": each.prompt_tokens,
            "images": [(item.width, item.height) for item in request.items],
            "ttft_s": each.ttft_s,
            "tpot_s": each.tpot_s,
        }
        for request, each in zip(plan.requests, seen.timed, strict=True)
    ]
    about = {"topology": topology, "rate": rate, "output": plan.output}
    client_s = max(0.0, seen.client_s - start_s) / (len(sent) - 1)
    return {**about, "foreign_share": foreign.share, "client_s": client_s, "requests": sent}
