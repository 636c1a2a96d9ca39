# SPDX-License-Identifier: Apache-2.0
"""Our transfers against NIXL alone, and against what the memory of the machine can do."""

from collections.abc import Iterator

from tests.bench.comparisons.base import Row
from tests.bench.results import Results
from tests.bench.transfer.cases import KIB, MIB, SIZES, size_name
from tests.bench.transfer.variants import BARE_DEFAULT, BARE_POLLED, MEMCPY

SMALL_FETCH = 1 / 20
"""Target for a whole fetch of 64 KiB over shared memory, of a bare READ as NIXL's defaults make it."""

COPY = 2.0
"""Target for shared memory, of one plain copy: half its bandwidth, where the bytes outweigh the messages."""

READ = 1.2
"""Target for a read over NIXL, of the same READ without us."""


def against_nixl(results: Results) -> Iterator[Row]:
    yield from _compare(results, "shm fetch", BARE_DEFAULT, 64 * KIB, SMALL_FETCH)
    for nbytes in SIZES:
        yield from _compare(results, "nixl read", BARE_POLLED, nbytes, READ)


def against_memcpy(results: Results) -> Iterator[Row]:
    for variant in ("shm read", "shm fetch"):
        for nbytes in (16 * MIB, 64 * MIB):
            yield from _compare(results, variant, MEMCPY, nbytes, COPY)


def _compare(results: Results, ours: str, other: str, nbytes: int, target: float) -> Iterator[Row]:
    mine, theirs = results.transfer(ours, nbytes), results.transfer(other, nbytes)
    if mine and theirs:
        name = f"{ours} of {size_name(nbytes)} vs {other}: p50"
        yield Row(name, mine.seconds.p50 * 1e6, theirs.seconds.p50 * 1e6, "us", target)
