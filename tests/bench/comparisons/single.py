# SPDX-License-Identifier: Apache-2.0
"""Ours against one stock server that does everything."""

from collections.abc import Iterator

from tests.bench.comparisons.base import Row
from tests.bench.results import Results


def against_single(results: Results) -> Iterator[Row]:
    for ours, single in results.pairs("ours", "single"):
        name = f"{ours.case.name} vs single server"
        yield Row(f"{name}: TTFT p50", ours.ttft.p50, single.ttft.p50, "s")
        yield Row(f"{name}: total p50", ours.total.p50, single.total.p50, "s")
        if ours.case.concurrency > 1:
            yield Row(f"{name}: wall time", ours.wall_per_request_s, single.wall_per_request_s, "s/request")
