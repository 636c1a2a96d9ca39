# SPDX-License-Identifier: Apache-2.0
"""The simulator against reality: a demo model on this machine, at rates below saturation.

`python -m experiments.reality` starts all topologies with `vllm-epd up`, sends a list of requests at several rates to
one after the other by `vllm bench serve`, round after round, simulates the very requests at the times at which they
were sent, on the profiles taken in that round, and writes mean TTFT and TPOT of both next to each other.
`--again FILE` simulates anew what was measured before, without running anything.
"""

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from msgspec.structs import replace
from rich.console import Console
from rich.table import Table

from experiments.reality.profiling import round_profile
from experiments.reality.runs import QUIET, Plan, run_all
from tests.bench.machine import describe_commit, describe_machine
from vllm_epd.planner.fleet import Fleet, Limits
from vllm_epd.planner.profile.media import measure
from vllm_epd.planner.profile.profile import Profile
from vllm_epd.planner.profile.store import load_profile
from vllm_epd.planner.simulate.run import simulate
from vllm_epd.planner.workload.generate import generate
from vllm_epd.planner.workload.requests import Item, Kind, Request
from vllm_epd.planner.workload.spec import load_workload
from vllm_epd.topology import Topology

HERE = Path(__file__).parent
TOPOLOGIES = ("EPD", "1E1PD", "1E1P1D")
RATES = (1.5, 2.5, 3.5)
ROUNDS = 3
TARGET = 0.2
"""How far a simulated mean may be off."""

ALIKE = 0.05
"""Topologies whose measured means do not differ by more in every round have no order: those of one and the same do."""

LIMITS = Limits(encode_items=8, prefill_sequences=128, decode_sequences=128, batched_tokens=4096)
"""What vLLM does at once on CPUs by default."""

Profiles = Mapping[int, Profile]
"""By round, the profile on which to simulate its runs."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run, or simulate again; 1 if a mean is further off than the target, or the order of the topologies is another.

    Runs in which others used much of the machine are shown, but not judged.
    """
    options, console = _parse(arguments), Console()
    taken = {} if options.again is None else json.loads(options.again.read_text())
    if options.again is None or options.redo:
        about = {"commit": describe_commit(), "machine": describe_machine(), "demo": options.demo}
        taken = {**about, "runs": _run(options, taken.get("runs", ()), about, console)}
    rows = compare_all(taken["runs"], _profiles(options, taken["runs"]))
    orders = compare_orders(rows)
    told = {"simulated_at": describe_commit(), "target": TARGET}
    _write(options.out, {**taken, **told, "means": rows, "orders": orders, "runs": taken["runs"]})
    _report(rows, orders, console)
    close = all(abs(row[f"{name}_error"]) <= TARGET for row in rows if row["quiet"] for name in ("ttft", "tpot"))
    return 0 if close and all(order["same"] for order in orders) and any(row["quiet"] for row in rows) else 1


def _profiles(options: argparse.Namespace, runs: Sequence[Mapping[str, Any]]) -> Profiles:
    """By round, the profile on which to simulate its runs."""
    folder = (options.again or options.out).parent
    rates = sorted({run["rate"] for run in runs})
    given = None if options.profile is None else load_profile(options.profile)
    return {number: given or round_profile(folder, number, rates) for number in {run["round"] for run in runs}}


def _write(path: Path, result: Mapping[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result) + "\n")


def compare_all(runs: Sequence[Mapping[str, Any]], profiles: Profiles) -> list[dict[str, Any]]:
    """A row for each rate and topology, over all rounds; where any was quiet, over those that were.

    Each run is simulated on the profile of its round: a machine is faster now than some time ago. The client's
    processor time for a request is the same wherever that goes: the mean of all runs is taken for it.
    """
    client_s = fmean(run["client_s"] for run in runs)
    kinds: dict[tuple[str, float], list[Mapping[str, Any]]] = {}
    for run in runs:
        kinds.setdefault((run["topology"], run["rate"]), []).append(run)
    rows = []
    for (topology, rate), same in kinds.items():
        quiet = [run for run in same if run["foreign_share"] <= QUIET]
        judged = quiet or same
        told = {"quiet": bool(quiet), "foreign_share": max(run["foreign_share"] for run in judged)}
        rows.append({"topology": topology, "rate": rate, **told, **compare(judged, profiles, client_s)})
    return rows


def compare(runs: Sequence[Mapping[str, Any]], profiles: Profiles, client_s: float) -> dict[str, Any]:
    """Means of what was measured in runs and of what is simulated for them; the first requests warmed caches up."""
    served = [each for run in runs for each in simulate_run(run, profiles[run["round"]], client_s)[1:]]
    sent = [each for run in runs for each in run["requests"][1:]]
    row: dict[str, Any] = {"runs": len(runs), "client_s": client_s}
    for name in ("ttft", "tpot"):
        measured = fmean(each[f"{name}_s"] for each in sent)
        simulated = fmean(getattr(each, f"{name}_s") for each in served)
        row |= {f"{name}_measured_s": measured, f"{name}_simulated_s": simulated}
        row[f"{name}_error"] = simulated / measured - 1
        row[f"{name}_rounds_s"] = {
            run["round"]: fmean(each[f"{name}_s"] for each in run["requests"][1:]) for run in runs
        }
    return row


def simulate_run(run: Mapping[str, Any], profile: Profile, client_s: float) -> list[Any]:
    """Simulate the requests of a run at the times at which they were sent, by a client on the same cores."""
    topology = Topology.parse(run["topology"])
    fleet = Fleet(topology, limits=LIMITS, tier="shm", instances_per_host=topology.size)
    profile = with_client(profile, topology, client_s)
    requests = [_request(number, each, run["output"], profile) for number, each in enumerate(run["requests"])]
    return list(simulate(fleet, profile, requests).served)


def with_client(profile: Profile, topology: Topology, client_s: float) -> Profile:
    """The profile where a client takes so much processor time of the same cores for each request with images."""
    beside = profile.overhead.beside_s + client_s / topology.size
    return replace(profile, overhead=replace(profile.overhead, beside_s=beside))


def _request(number: int, sent: Mapping[str, Any], output: int, profile: Profile) -> Request:
    items = tuple(Item(Kind.IMAGE, width, height) for width, height in sent["images"])
    media = sum(measure(profile, item).tokens for item in items)
    return Request(number, sent["at"], max(1, sent["prompt_tokens"] - media), output, items)


def compare_orders(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Of each rate and mean, the topologies from the best to the worst; those that are alike may change places.

    Only rows of quiet runs are compared, and only rates of which there are two or more: one alone has no order.
    """
    found = []
    rows = [row for row in rows if row["quiet"]]
    for rate in dict.fromkeys(row["rate"] for row in rows):
        for name in ("ttft", "tpot"):
            real, told = (
                {row["topology"]: row[f"{name}_{side}_s"] for row in rows if row["rate"] == rate}
                for side in ("measured", "simulated")
            )
            if len(real) < 2:
                continue
            each_round = {row["topology"]: row[f"{name}_rounds_s"] for row in rows if row["rate"] == rate}
            wrong = [
                (one, other)
                for one in real
                for other in real
                if _faster(each_round[one], each_round[other]) and told[one] >= told[other]
            ]
            orders = {"measured": sorted(real, key=real.__getitem__), "simulated": sorted(told, key=told.__getitem__)}
            found.append({"rate": rate, "mean": name, **orders, "wrong": wrong, "same": not wrong})
    return found


def _faster(one: Mapping[int, float], other: Mapping[int, float]) -> bool:
    """Whether one topology was faster than another in every round of both."""
    both = one.keys() & other.keys()
    return bool(both) and all(one[number] * (1 + ALIKE) < other[number] for number in both)


def _run(
    options: argparse.Namespace, done: Sequence[dict[str, Any]], about: Mapping[str, Any], console: Console
) -> list[dict[str, Any]]:
    requests = generate(load_workload(options.workload), options.seed)
    plan = Plan(
        demo=options.demo,
        topologies=options.topologies,
        rates=options.rates,
        rounds=options.rounds,
        requests=requests,
        output=requests[0].output_tokens,
        seed=options.seed,
        port=options.port,
        logs=options.logs,
        profiles=None if options.profile else options.out.parent,
    )
    return run_all(plan, done, lambda runs: _write(options.out, {**about, "runs": runs}), console)


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m experiments.reality", description=__doc__)
    add = parser.add_argument
    add("--demo", default="qwen2.5-vl", help="family of the demo model")
    add("--profile", help="name or file of its profile on this machine (default: one taken before each rate)")
    add("--workload", type=Path, default=HERE / "workload.yaml", help="sizes of the requests")
    add("--topologies", nargs="+", default=TOPOLOGIES)
    add("--rates", nargs="+", type=float, default=RATES, help="requests a second")
    add("--rounds", type=int, default=ROUNDS, help="how often each topology is run at each rate")
    add("--seed", type=int, default=0)
    add("--port", type=int, default=8123, help="of the first topology's router; those of the others follow")
    add("--again", type=Path, help="results of which to simulate the runs again")
    add("--redo", action="store_true", help="but do those runs anew in which others used much of the machine")
    add("--out", type=Path, default=HERE / "result.json")
    add("--logs", type=Path, default=Path("build/reality"))
    return parser.parse_args(arguments)


def _report(rows: Sequence[Mapping[str, Any]], orders: Sequence[Mapping[str, Any]], console: Console) -> None:
    table = Table(
        "topology", "rate", "TTFT: measured", "simulated", "off", "TPOT: measured", "simulated", "off", "others"
    )
    for row in rows:
        cells = [row["topology"], f"{row['rate']:g}"]
        for name in ("ttft", "tpot"):
            cells += [f"{1000 * row[f'{name}_{side}_s']:.1f} ms" for side in ("measured", "simulated")]
            cells.append(f"{row[f'{name}_error']:+.0%}")
        table.add_row(*cells, f"{row['foreign_share']:.0%}{'' if row['quiet'] else ', not judged'}")
    console.print(table)
    console.print(f"{sum(row['quiet'] for row in rows)} of {len(rows)} rows are of quiet runs, and are judged")
    for order in orders:
        real, told = " < ".join(order["measured"]), " < ".join(order["simulated"])
        sign = "as" if order["same"] else "NOT as"
        console.print(f"{order['mean']} at {order['rate']:g}/s: {told}, {sign} measured: {real}")
        for one, other in order["wrong"]:
            console.print(
                f"  {one} was faster than {other} by more than {ALIKE:.0%} in every round, and is not in the simulation"
            )
