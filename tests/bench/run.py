# SPDX-License-Identifier: Apache-2.0
"""`make bench`: measures this package beside stock vLLM, and writes build/bench.json.

Five sections: `serving`, where whole systems run one after the other on the same requests, `handover`, where KV
caches go from prefill to decode, `transfer`, where bytes move between two processes, `codec`, where embeddings are
compressed, and `router`, where the router serves instances that answer at once. The exit code is 1 if something could
not be measured; a missed target does not change it.
"""

import argparse
import asyncio
import sys
import tempfile
from collections.abc import Callable, Coroutine, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import aiohttp
import httpx
from rich.console import Console

from tests.bench.cases import CASES, build_requests
from tests.bench.codec.measure import measure_codecs
from tests.bench.errors import BenchError
from tests.bench.handover.cases import WAYS
from tests.bench.handover.measure import measure_handovers
from tests.bench.machine import ROOT, describe_machine
from tests.bench.measure import Workload, measure
from tests.bench.processes import Place
from tests.bench.report import compare, print_report, write_json
from tests.bench.results import Results
from tests.bench.router.measure import measure_router
from tests.bench.systems import EXTRA, SYSTEMS, System
from tests.bench.transfer.measure import measure_transfers
from tests.bench.transfer.variants import VARIANTS
from vllm_epd.demo import FAMILIES, ensure_model
from vllm_epd.errors import EPDError

WIDTH = 160
FAILURES = (BenchError, EPDError, AssertionError, aiohttp.ClientError, httpx.HTTPError, OSError)
OUTPUT = ROOT / "build" / "bench.json"
LOGS = ROOT / "build" / "bench-logs"


def main() -> int:
    """Measure, report, and return the exit code."""
    options = _parse()
    console = Console(width=None if sys.stdout.isatty() else WIDTH)
    machine = describe_machine()
    results = Results()
    failures = sum(SECTIONS[name](options, results, console) for name in options.only)
    rows = compare(results)
    print_report(results, rows, console)
    write_json(options.output, results, rows, machine)
    console.print(f"{options.output} has the numbers, {LOGS} the logs of servers")
    return 1 if failures else 0


def _serving(options: argparse.Namespace, results: Results, console: Console) -> int:
    console.print("making the requests")
    workload = [(case, *build_requests(case)) for case in CASES if case.name in options.cases]
    systems = [system for system in (*SYSTEMS, *EXTRA) if system.name in options.systems]
    return asyncio.run(_measure_all(systems, workload, results, console))


def _transfer(options: argparse.Namespace, results: Results, console: Console) -> int:
    console.print("transfer: starting")
    transfers, failures = measure_transfers(VARIANTS, lambda text: console.print(text, markup=False))
    results.transfers += transfers
    return failures


def _handover(options: argparse.Namespace, results: Results, console: Console) -> int:
    place = Place(ensure_model("qwen2.5-vl"), LOGS, LOGS)

    async def run() -> None:
        results.handovers += await measure_handovers(WAYS, place, lambda text: console.print(text, markup=False))

    return _measured("hand-over", run, console)


def _codec(options: argparse.Namespace, results: Results, console: Console) -> int:
    async def run(family: str) -> None:
        place = Place(ensure_model(family), LOGS, LOGS)
        results.codecs += await measure_codecs(family, place, lambda text: console.print(text, markup=False))

    return sum(_measured(f"codecs, {family}", partial(run, family), console) for family in options.families)


def _router(options: argparse.Namespace, results: Results, console: Console) -> int:
    async def run() -> None:
        results.passed += await measure_router(LOGS, lambda text: console.print(text, markup=False))

    return _measured("router", run, console)


def _measured(what: str, run: Callable[[], Coroutine[Any, Any, None]], console: Console) -> int:
    """How much of a measurement failed; each failure is printed."""
    LOGS.mkdir(parents=True, exist_ok=True)
    failures = 0
    try:
        asyncio.run(run())
    except* FAILURES as group:
        for error in group.exceptions:
            failures += 1
            console.print(f"{what} FAILED: {error!r}", markup=False)
    return failures


Section = Callable[[argparse.Namespace, Results, Console], int]
"""Adds to the results; how much of it failed."""

SECTIONS: dict[str, Section] = {
    "router": _router,
    "transfer": _transfer,
    "handover": _handover,
    "codec": _codec,
    "serving": _serving,
}
"""In the order in which they run."""


async def _measure_all(systems: Sequence[System], workload: Workload, results: Results, console: Console) -> int:
    failures = 0
    LOGS.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="bench-") as scratch:
        place = Place(ensure_model("qwen2.5-vl"), LOGS, Path(scratch))
        for system in systems:
            console.print(f"{system.name}: starting")
            try:
                await measure(system, place, workload, results)
            except* FAILURES as group:
                failures += 1
                for error in group.exceptions:
                    console.print(f"{system.name} FAILED: {error!r}", markup=False)
    return failures


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="make bench", description=__doc__)
    known, usual = [each.name for each in (*SYSTEMS, *EXTRA)], [each.name for each in SYSTEMS]
    cases = [each.name for each in CASES]
    sections = list(SECTIONS)
    parser.add_argument("--only", nargs="+", choices=sections, default=sections, help="sections to run")
    parser.add_argument("--systems", nargs="+", choices=known, default=usual, help="what serves")
    parser.add_argument("--cases", nargs="+", choices=cases, default=cases, help="what to ask")
    parser.add_argument("--families", nargs="+", choices=FAMILIES, default=FAMILIES, help="models for codecs")
    parser.add_argument("--output", type=Path, default=OUTPUT, help="JSON file to write")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
