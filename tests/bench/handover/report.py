# SPDX-License-Identifier: Apache-2.0
"""The hand-overs as a table."""

from rich.table import Table

from tests.bench.results import Results
from tests.bench.tables import new_table


def handover_table(results: Results) -> Table:
    """One row for each prompt length and way."""
    columns = ("requests", "prefill p50 ms", "hand-over p50 ms", "hand-over p95 ms")
    table = new_table("From P's answer to D's first token", "tokens", "way", *columns)
    for each in sorted(results.handovers, key=lambda each: each.tokens):
        times = (each.prefill.p50, each.handover.p50, each.handover.p95)
        table.add_row(str(each.tokens), each.way, str(each.requests), *(f"{seconds * 1e3:.1f}" for seconds in times))
    return table
