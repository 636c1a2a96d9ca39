# SPDX-License-Identifier: Apache-2.0
"""The results as tables, and as JSON."""

import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from tests.bench.codec.report import codec_mapping, codec_table
from tests.bench.comparisons import COMPARISONS, Row
from tests.bench.handover.report import handover_table
from tests.bench.machine import describe_commit
from tests.bench.results import Result, Results
from tests.bench.router.report import passed_mapping, router_table
from tests.bench.tables import new_table
from tests.bench.transfer.report import transfer_mapping, transfer_table

SERVERS = ("E", "P", "D", "router", "single")
STAGES = ("E", "P", "D")
VERDICTS = {None: "", True: "[green]ok[/]", False: "[bold red]MISSED[/]"}


def compare(results: Results) -> list[Row]:
    """The rows of all comparisons."""
    return [row for rows in COMPARISONS for row in rows(results)]


def print_report(results: Results, rows: list[Row], console: Console) -> None:
    """All tables, and what missed its target."""
    if results.all:
        console.print(_times(results), _processor(results), _stages(results))
    if results.handovers:
        console.print(handover_table(results))
    if results.transfers:
        console.print(transfer_table(results))
    if results.codecs:
        console.print(codec_table(results))
    if results.passed:
        console.print(router_table(results))
    console.print(_compared(rows))
    if missed := [row for row in rows if row.ok is False]:
        console.print(f"[bold red]MISSED[/] {len(missed)} of {sum(row.ok is not None for row in rows)} targets:")
        for row in missed:
            console.print(f"  {row.name}: ratio {row.ratio:.3g}, target {row.target:.3g}")


def write_json(path: Path, results: Results, rows: list[Row], machine: dict[str, Any]) -> None:
    """Rows for programs, with what they come from."""
    content = {
        "commit": describe_commit(),
        "machine": machine,
        "rows": [asdict(row) | {"ratio": row.ratio, "ok": row.ok} for row in rows],
        "measured": [_as_mapping(result) for result in results.all],
        "handovers": [asdict(handover) for handover in results.handovers],
        "router": [passed_mapping(passed) for passed in results.passed],
        "transfers": [transfer_mapping(results, transfer) for transfer in results.transfers],
        "codecs": [codec_mapping(results, codec) for codec in results.codecs],
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=2) + "\n")


def _times(results: Results) -> Table:
    columns = ("TTFT p50", "TTFT p95", "total p50", "total p95", "requests/s", "answers as single")
    table = new_table("Seconds of a request", "case", "system", "requests", "tokens in", *columns)
    for case, result in _by_case(results, table):
        single, ttft, total = results.find("single", result.case), result.ttft, result.total
        table.add_row(
            case,
            result.system,
            str(len(result.answers)),
            str(max(answer.prompt_tokens for answer in result.answers)),
            *(f"{seconds:.3f}" for seconds in (ttft.p50, ttft.p95, total.p50, total.p95)),
            f"{1 / result.wall_per_request_s:.2f}",
            f"{result.same_answers(single)}/{len(result.answers)}" if single else "",
        )
    return table


def _processor(results: Results) -> Table:
    title = "Processor seconds of a request (in brackets, of the API server alone)"
    table = new_table(title, "case", "system", *SERVERS)
    for case, result in _by_case(results, table):
        used = (result.cpu.get(name) for name in SERVERS)
        table.add_row(case, result.system, *(f"{each.all:.2f} ({each.front:.2f})" if each else "" for each in used))
    return table


def _stages(results: Results) -> Table:
    """Where the time goes; for ours, the rest is the router and the way to it."""
    table = new_table(
        "Mean seconds of a request by stage, and over those of the single server",
        "case",
        "system",
        "total",
        "over single",
        *STAGES,
        "rest",
    )
    for case, result in _by_case(results, table):
        single = results.find("single", result.case)
        over = f"{result.total.mean - single.total.mean:+.3f}" if single else ""
        spent = [f"{result.stage_s[name]:.3f}" if name in result.stage_s else "" for name in STAGES]
        rest = f"{result.rest_s:.3f}" if result.stage_s else ""
        table.add_row(case, result.system, f"{result.total.mean:.3f}", over, *spent, rest)
    return table


def _compared(rows: Iterable[Row]) -> Table:
    table = new_table("Ours against others; less is better", "", "unit", "ours", "reference", "ratio", "target", "")
    for row in rows:
        target = "" if row.target is None else f"{row.target:.3g}"
        numbers = f"{row.ours:.3f}", f"{row.reference:.3f}", f"{row.ratio:.3g}"
        table.add_row(row.name, row.unit, *numbers, target, VERDICTS[row.ok])
    return table


def _by_case(results: Results, table: Table) -> Iterator[tuple[str, Result]]:
    """All results, those of one case together, with the case's name at the first of them."""
    for case in dict.fromkeys(each.case for each in results.all):
        label = case.name
        for result in (each for each in results.all if each.case == case):
            yield label, result
            label = ""
        table.add_section()


def _as_mapping(result: Result) -> dict[str, Any]:
    return {
        "system": result.system,
        "case": result.case.name,
        "requests": len(result.answers),
        "ttft_s": asdict(result.ttft),
        "total_s": asdict(result.total),
        "wall_s": result.wall_s,
        "cpu_s_per_request": {name: asdict(used) for name, used in result.cpu.items()},
        "stage_s": dict(result.stage_s),
    }
