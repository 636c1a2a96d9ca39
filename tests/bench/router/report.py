# SPDX-License-Identifier: Apache-2.0
"""What the router costs, as a table and for JSON."""

from dataclasses import asdict
from typing import Any

from rich.table import Table

from tests.bench.results import Results
from tests.bench.router.cases import DIRECT
from tests.bench.router.results import Passed
from tests.bench.tables import new_table


def router_table(results: Results) -> Table:
    """One row for each case and front; what a front adds is what its requests take beyond those to the stub itself."""
    columns = ("p50 ms", "p99 ms", "added p50", "added p99", "requests/s", "CPU ms", "requests/CPU s")
    table = new_table("The router beside a pass-through; all instances answer at once", "case", "front", *columns)
    label = None
    for each in results.passed:
        direct = results.passing(DIRECT, each.case)
        added = ("", "") if each is direct or direct is None else _added(each, direct)
        cpu = ("", "") if each.cpu_s is None else (f"{each.cpu_s * 1e3:.2f}", f"{1 / each.cpu_s:.0f}")
        times = f"{each.seconds.p50 * 1e3:.2f}", f"{each.seconds.p99 * 1e3:.2f}"
        if label != each.case.name:
            table.add_section()
        table.add_row(
            each.case.name if label != each.case.name else "", each.front, *times, *added, f"{each.per_s:.0f}", *cpu
        )
        label = each.case.name
    return table


def passed_mapping(passed: Passed) -> dict[str, Any]:
    return asdict(passed) | {"case": passed.case.name}


def _added(each: Passed, direct: Passed) -> tuple[str, str]:
    p50, p99 = each.seconds.p50 - direct.seconds.p50, each.seconds.p99 - direct.seconds.p99
    return f"{p50 * 1e3:.2f}", f"{p99 * 1e3:.2f}"
