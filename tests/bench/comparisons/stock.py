# SPDX-License-Identifier: Apache-2.0
"""Ours against three stock servers."""

from collections.abc import Iterator

from tests.bench.comparisons.base import Row
from tests.bench.results import Results

LATENCY = {"image_448": 0.8, "images_4mb": 0.8}
"""Targets for the time to the first token and to the last one."""

CPU = {"images_4mb": 0.5}
"""Targets for the processor time of P and D: media is decoded and preprocessed at E alone."""


def against_stock(results: Results) -> Iterator[Row]:
    for ours, stock in results.pairs("ours", "stock"):
        case = ours.case
        name, target = f"{case.name} vs stock 1E1P1D", LATENCY.get(case.name)
        yield Row(f"{name}: TTFT p50", ours.ttft.p50, stock.ttft.p50, "s", target)
        yield Row(f"{name}: total p50", ours.total.p50, stock.total.p50, "s", target)
        if case.concurrency > 1:
            yield Row(f"{name}: wall time", ours.wall_per_request_s, stock.wall_per_request_s, "s/request")
        for server in "PD":
            mine, theirs = ours.cpu[server], stock.cpu[server]
            yield Row(f"{name}: CPU of {server}", mine.all, theirs.all, "s/request", CPU.get(case.name))
            yield Row(f"{name}: CPU of {server}'s API server", mine.front, theirs.front, "s/request")
