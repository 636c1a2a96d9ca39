# SPDX-License-Identifier: Apache-2.0
"""All variants; a further one is a class with the methods of `Variant`, listed here."""

from tests.bench.transfer.variants.bare_nixl import BareNixl
from tests.bench.transfer.variants.base import Variant
from tests.bench.transfer.variants.memcpy import Memcpy
from tests.bench.transfer.variants.tier import TierFetch, TierRead

MEMCPY = "memcpy"
BARE_DEFAULT = "bare NIXL, default"
BARE_POLLED = "bare NIXL, no thread"

VARIANTS: tuple[Variant, ...] = (
    Memcpy(MEMCPY),
    BareNixl(BARE_DEFAULT, progress_thread=True),
    BareNixl(BARE_POLLED, progress_thread=False),
    TierRead("shm"),
    TierRead("nixl"),
    TierFetch("shm"),
    TierFetch("nixl"),
    TierRead("cuda_ipc", "cuda"),
    TierRead("nixl", "cuda"),
    TierFetch("cuda_ipc", "cuda"),
    TierFetch("nixl", "cuda"),
)

__all__ = ["BARE_DEFAULT", "BARE_POLLED", "MEMCPY", "VARIANTS", "Variant"]
