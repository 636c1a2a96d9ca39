# SPDX-License-Identifier: Apache-2.0
"""`vllm-epd simulate`: one run, and what it says of the fleet."""

import argparse
import json
from dataclasses import asdict, replace
from typing import Any

from rich.console import Console
from rich.table import Table

from vllm_epd.errors import ConfigError
from vllm_epd.planner.commands.inputs import base_fleet, by_role, irp_degree, limits, workload
from vllm_epd.planner.profile.store import load_profile
from vllm_epd.planner.search.objective import Slo, attainment
from vllm_epd.planner.simulate.chrome import ChromeTrace
from vllm_epd.planner.simulate.metrics import Spread, Summary, summarize
from vllm_epd.planner.simulate.outcome import Outcome
from vllm_epd.planner.simulate.run import simulate
from vllm_epd.planner.workload.generate import generate
from vllm_epd.topology import Topology


def simulate_command(options: argparse.Namespace, console: Console) -> int:
    """Simulate and show.

    Raises:
        ConfigError: the options contradict each other, or what they name.
    """
    profile = load_profile(options.profile)
    fleet = replace(
        base_fleet(options, profile),
        topology=Topology.parse(options.topology),
        limits=limits(options),
        policies=by_role(options, "policy"),
        orders=by_role(options, "order"),
        irp_degree=irp_degree(options.irp_degree),
    )
    slo = _slo(options)
    requests = generate(workload(options, options.rate))
    trace = ChromeTrace() if options.trace else None
    outcome = simulate(fleet, profile, requests, trace=trace, ttft_slo_s=options.slo_ttft)
    summary = summarize(outcome)
    kept = None if slo is None else attainment(outcome, slo)
    if trace is not None:
        try:
            trace.write(options.trace)
        except OSError as error:
            raise ConfigError(f"cannot write {options.trace}: {error}") from error
    if options.json:
        console.file.write(json.dumps(_numbers(fleet.topology, outcome, summary, kept), indent=2) + "\n")
    else:
        _show(console, f"{fleet.topology} of {profile.model} on {profile.hardware.name}", outcome, summary, kept)
    return 0


def _slo(options: argparse.Namespace) -> Slo | None:
    given = options.slo_ttft, options.slo_tpot
    if given == (None, None):
        return None
    unbounded = float("inf")
    return Slo(*(unbounded if value is None else value for value in given))


def _numbers(topology: Topology, outcome: Outcome, summary: Summary, kept: float | None) -> dict[str, Any]:
    return {
        "topology": str(topology),
        **asdict(summary),
        "attainment": kept,
        "instances": [asdict(use) for use in outcome.uses],
        "refusals": [asdict(refused) for refused in outcome.refused],
    }


def _show(console: Console, title: str, outcome: Outcome, summary: Summary, kept: float | None) -> None:
    console.print(_times(title, summary), _uses(outcome, summary))
    console.print(
        f"{summary.served} requests served, {summary.requests_per_s:.3g} in a second, with {summary.tokens_per_s:.4g}"
        f" tokens; one takes {summary.device_s:.3g} s of a device"
    )
    if kept is not None:
        console.print(f"{kept:.1%} of the requests have what is promised")
    if outcome.refused:
        console.print(f"{summary.refused} are refused, the first since {outcome.refused[0].why}", style="red")


def _times(title: str, summary: Summary) -> Table:
    table = Table("seconds", "mean", "p50", "p90", "p99", title=title)
    spreads: tuple[tuple[str, Spread], ...] = (("TTFT", summary.ttft), ("TPOT", summary.tpot), ("whole", summary.e2e))
    for name, spread in spreads:
        table.add_row(name, *(f"{value:.4g}" for value in (spread.mean, spread.p50, spread.p90, spread.p99)))
    return table


def _uses(outcome: Outcome, summary: Summary) -> Table:
    table = Table("instance", "busy", "seconds by stage", "KV cache at most", "embeddings at most")
    for use in outcome.uses:
        stages = ", ".join(f"{stage} {seconds:.3g}" for stage, seconds in use.by_stage.items())
        memory = _part(use.peak_kv_tokens, use.kv_tokens), _part(use.peak_embedding_tokens, use.embedding_tokens)
        table.add_row(use.name, f"{summary.use[use.name]:.0%}", stages, *memory)
    return table


def _part(peak: int, room: int) -> str:
    return f"{peak / room:.0%} of {room:,} tokens" if room else ""
