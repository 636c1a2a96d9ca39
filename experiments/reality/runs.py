# SPDX-License-Identifier: Apache-2.0
"""Requests sent to topologies that really run, to one after the other in turn.

All of them stand from the first run to the last, the others idle while one is asked: what is compared is measured
within minutes of each other, since a machine does not stay as fast for longer.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Console

from experiments.reality.foreign import Foreign
from experiments.reality.profiling import profile_file, take_profile
from experiments.reality.serving import bench, serving, write_dataset
from vllm_epd.demo import ensure_model
from vllm_epd.planner.workload.requests import Request

QUIET = 0.1
"""Of the machine that others may use during a run."""

TRIES = 3
"""At a run that is not quiet."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What is run.

    Attributes:
        demo: family of the demo model.
        topologies: such as `1E1PD`.
        rates: requests a second.
        rounds: how often each topology is run at each rate.
        requests: what is sent in each run; the first one is sent by the benchmark's warm-up too.
        output: tokens of output of each.
        seed: of arrivals and contents.
        port: of the first topology's router; those of the others follow.
        logs: folder for logs and data sets.
        profiles: folder for profiles, one for each rate of each round; None if none is to be taken.
    """

    demo: str
    topologies: Sequence[str]
    rates: Sequence[float]
    rounds: int
    requests: Sequence[Request]
    output: int
    seed: int
    port: int
    logs: Path
    profiles: Path | None


class Key(NamedTuple):
    """Which run; in the order in which they are done."""

    round: int
    rate: float
    topology: str


def run_all(
    plan: Plan, done: Sequence[dict[str, Any]], keep: Callable[[list[dict[str, Any]]], None], console: Console
) -> list[dict[str, Any]]:
    """What was sent in each run, when, and what it took; a profile is taken before the first run of each rate.

    A run in which others used too much of the machine is done again a few times, with the same arrivals and sizes but
    other pictures and words, since the servers would still know those; the quietest one counts.

    Args:
        plan: what is run.
        done: earlier runs; those of them that were quiet are not done again.
        keep: given all runs so far after each one, since they take minutes.
        console: told of each run.
    """
    found = {key_of(each): each for each in done if each["foreign_share"] <= QUIET}
    keys = [
        Key(number, rate, topology)
        for number in range(plan.rounds)
        for rate in plan.rates
        for topology in plan.topologies
    ]
    if missing := [key for key in keys if key not in found]:
        with ExitStack() as stack:
            urls = {
                topology: stack.enter_context(serving(plan.demo, topology, plan.logs, plan.port + number))
                for number, topology in enumerate(plan.topologies)
            }
            for key in missing:
                _profile(plan, key, urls, console)
                found[key] = _quiet_run(plan, urls[key.topology], key, console)
                keep(list(found.values()))
    return [found[key] for key in keys]


def _profile(plan: Plan, key: Key, urls: Mapping[str, str], console: Console) -> None:
    """Take the profile for a rate of a round, unless there is one."""
    if plan.profiles is not None and not (out := profile_file(plan.profiles, key.round, key.rate)).exists():
        take_profile(plan.demo, urls, out, console)


def key_of(run: Mapping[str, Any]) -> Key:
    """Which run it was."""
    return Key(run["round"], run["rate"], run["topology"])


def _quiet_run(plan: Plan, url: str, key: Key, console: Console) -> dict[str, Any]:
    tries: list[dict[str, Any]] = []
    while len(tries) < TRIES and all(each["foreign_share"] > QUIET for each in tries):
        tries.append(_run(plan, url, key, len(tries)))
        used = f"{tries[-1]['foreign_share']:.1%}"
        console.print(f"round {key.round + 1}, {key.topology} at {key.rate:g}/s: others used {used} of the machine")
    return min(tries, key=lambda each: float(each["foreign_share"]))


def _run(plan: Plan, url: str, key: Key, tried: int) -> dict[str, Any]:
    folder, dataset = ensure_model(plan.demo), plan.logs / f"{key.topology}-{key.rate:g}.jsonl"
    arrivals = plan.seed + key.round * len(plan.rates) + plan.rates.index(key.rate)
    write_dataset(dataset, plan.requests, (arrivals, tried))
    with Foreign() as foreign:
        seen = bench(url, plan.demo, folder, dataset, len(plan.requests), plan.output, key.rate, arrivals)
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
    return {
        **key._asdict(),
        "output": plan.output,
        "foreign_share": foreign.share,
        "client_s": seen.client_s,
        "requests": sent,
    }
