# SPDX-License-Identifier: Apache-2.0
"""The transfers as a table, and for JSON."""

from dataclasses import asdict
from typing import Any

from rich.table import Table

from tests.bench.results import Results
from tests.bench.tables import new_table
from tests.bench.transfer.cases import SIZES, size_name
from tests.bench.transfer.results import Transfer
from tests.bench.transfer.variants import BARE_DEFAULT, BARE_POLLED, MEMCPY

RATIOS = {"time / bare NIXL": BARE_DEFAULT, "time / bare, no thread": BARE_POLLED, "bandwidth / memcpy": MEMCPY}


def transfer_table(results: Results) -> Table:
    """One row for each size and variant."""
    table = new_table(
        "Transfers between two processes", "size", "variant", "reads", "p50 us", "p95 us", "GB/s", *RATIOS
    )
    for nbytes in SIZES:
        label = size_name(nbytes)
        for transfer in (each for each in results.transfers if each.nbytes == nbytes):
            seconds = transfer.seconds
            times = f"{seconds.p50 * 1e6:.1f}", f"{seconds.p95 * 1e6:.1f}", f"{transfer.bytes_per_s / 1e9:.2f}"
            ratios = (f"{ratio:.3g}" if ratio else "" for ratio in _ratios(results, transfer).values())
            table.add_row(label, transfer.variant, str(transfer.reads), *times, *ratios)
            label = ""
        table.add_section()
    return table


def transfer_mapping(results: Results, transfer: Transfer) -> dict[str, Any]:
    return asdict(transfer) | {"bytes_per_s": transfer.bytes_per_s, "ratios": _ratios(results, transfer)}


def _ratios(results: Results, transfer: Transfer) -> dict[str, float | None]:
    """By the medians; None where the other was not measured."""
    found: dict[str, float | None] = {}
    for name, reference in RATIOS.items():
        other = results.transfer(reference, transfer.nbytes)
        time = transfer.seconds.p50 / other.seconds.p50 if other else None
        found[name] = 1 / time if time and reference == MEMCPY else time
    return found
