# SPDX-License-Identifier: Apache-2.0
"""What is moved: sizes, how often, and the bytes."""

import numpy as np

KIB, MIB = 1 << 10, 1 << 20

READS = {64 * KIB: 30, 1 * MIB: 20, 16 * MIB: 6, 64 * MIB: 3}
"""Sizes, and how many reads of each a variant measures in a row before the next variant has its turn."""

SIZES = tuple(READS)
ROUNDS = 10
WARM_UP = 6
"""Unmeasured reads at the start of each turn: a process that was stopped finds its caches cold."""

SOURCES, TARGETS = 3, 2
"""Places that reads of one size go around: as many as doctor's producer has items, and its consumer has room for."""

SEED = 20


def source_bytes() -> np.ndarray:
    """What lies at the source of every read: for each size, `SOURCES` pieces from offset 0 on."""
    return np.frombuffer(np.random.default_rng(SEED).bytes(SOURCES * max(SIZES)), dtype=np.uint8)


def size_name(nbytes: int) -> str:
    return f"{nbytes // MIB} MiB" if nbytes >= MIB else f"{nbytes // KIB} KiB"
