# SPDX-License-Identifier: Apache-2.0
"""What the machine can do: one thread copies within one process."""

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from tests.bench.transfer.cases import SIZES, TARGETS, source_bytes
from tests.bench.transfer.variants.base import Reader, Source
from tests.bench.transfer.variants.places import Rounds


@dataclass(frozen=True, slots=True)
class _Nothing:
    description: bytes = b""

    def progress(self) -> None:
        pass


@dataclass(frozen=True, slots=True)
class Memcpy:
    name: str = "memcpy"

    def missing(self) -> str:
        return ""

    @contextmanager
    def open_source(self) -> Iterator[Source]:
        yield _Nothing()

    @contextmanager
    def open_reader(self, description: bytes) -> Iterator[Reader]:
        source = torch.from_numpy(source_bytes().copy())
        target = torch.zeros(TARGETS * max(SIZES), dtype=torch.uint8)
        yield Rounds(
            target,
            lambda there, here, nbytes: ctypes.memmove(target.data_ptr() + here, source.data_ptr() + there, nbytes),
        )
