# SPDX-License-Identifier: Apache-2.0
"""The router with all its stages against a pass-through that makes one call."""

from collections.abc import Iterator

from tests.bench.comparisons.base import Row
from tests.bench.results import Results
from tests.bench.router.cases import CASES, DIRECT, PROXY, ROUTER

CPU = 2.0
"""Target for the processor time of a request: half the pass-through's rate."""

ADDED = 3.0
"""Target for the latency that is added at the median, where there is an image."""


def against_proxy(results: Results) -> Iterator[Row]:
    for case in CASES:
        direct, proxy, router = (results.passing(front, case) for front in (DIRECT, PROXY, ROUTER))
        if not (direct and proxy and router and proxy.cpu_s and router.cpu_s):
            continue
        name = f"router, {case.name} vs pass-through"
        yield Row(f"{name}: CPU", router.cpu_s * 1e3, proxy.cpu_s * 1e3, "ms", CPU if case.targets else None)
        ours, theirs = ((each.seconds.p50 - direct.seconds.p50) * 1e3 for each in (router, proxy))
        yield Row(f"{name}: added p50", ours, theirs, "ms", ADDED if case.targets and case.image else None)
