# SPDX-License-Identifier: Apache-2.0
"""Regions with the bytes to read, and where the next read goes."""

import itertools
import time
from collections.abc import Callable

import torch

from tests.bench.errors import BenchError
from tests.bench.transfer.cases import SIZES, SOURCES, TARGETS, source_bytes
from vllm_epd.transfer.cuda_ipc import device_region
from vllm_epd.transfer.region import Region, host_region


def source_region(device: str) -> Region:
    """Filled with `source_bytes`, so that all its pages are there."""
    return filled(_region(SOURCES * max(SIZES), device))


def target_region(device: str) -> Region:
    """Filled with zeros, so that all its pages are there."""
    region = _region(TARGETS * max(SIZES), device)
    region.tensor.zero_()
    return region


def filled(region: Region) -> Region:
    region.tensor.copy_(torch.from_numpy(source_bytes().copy()))
    return region


class Rounds:
    """Reads from place to place, timed."""

    def __init__(self, target: torch.Tensor, move: Callable[[int, int, int], None]) -> None:
        """`move(from, to, nbytes)` copies between two offsets, and returns when the bytes are in `target`."""
        self._target = target
        self._move = move
        self._numbers = itertools.count()
        self._expected = torch.from_numpy(source_bytes().copy())

    def read(self, nbytes: int, *, check: bool) -> float:
        number = next(self._numbers)
        there, here = number % SOURCES * nbytes, number % TARGETS * nbytes
        start = time.perf_counter()
        self._move(there, here, nbytes)
        seconds = time.perf_counter() - start
        if check:
            landed = self._target[here : here + nbytes].cpu()
            if not torch.equal(landed, self._expected[there : there + nbytes]):
                raise BenchError(f"the bytes of a read of {nbytes} differ")
        return seconds


def _region(nbytes: int, device: str) -> Region:
    return host_region(nbytes) if device == "cpu" else device_region(nbytes, torch.device(device))
