# SPDX-License-Identifier: Apache-2.0
"""The transports that the suite runs over, each with the memory that it moves."""

import importlib.util
from dataclasses import dataclass

import numpy as np
import torch

from vllm_epd.transfer.base import Transport
from vllm_epd.transfer.cuda_ipc import device_region
from vllm_epd.transfer.region import Region, host_region
from vllm_epd.transfer.tiers import MAKERS, TransferMemory

NBYTES = 256 << 10
SEED = 7


@dataclass(frozen=True, slots=True)
class Kind:
    """A transport over one kind of memory; pickled into the processes of owners and readers.

    Attributes:
        in_one_process: whether two of them in the same process reach each other.
    """

    transport: str
    device: str = "cpu"
    needs: tuple[str, ...] = ()
    in_one_process: bool = True

    def __str__(self) -> str:
        return f"{self.transport}-{self.device}"

    def missing(self) -> str:
        """What this machine lacks for it; empty where that is nothing."""
        if self.device != "cpu" and not torch.cuda.is_available():
            return f"{self.transport} between device memories needs a CUDA device"
        lacking = [name for name in self.needs if importlib.util.find_spec(name) is None]
        return f"{self.transport} needs {lacking[0]}, which is not installed" if lacking else ""

    def make(self) -> Transport:
        return MAKERS[self.transport](TransferMemory(0, self.device))

    def region(self, nbytes: int = NBYTES) -> Region:
        return host_region(nbytes) if self.device == "cpu" else device_region(nbytes, torch.device(self.device))


KINDS = (
    Kind("shm"),
    Kind("nixl", needs=("nixl",)),
    Kind("cuda_ipc", "cuda", needs=("cupy",), in_one_process=False),
    Kind("nixl", "cuda", needs=("nixl",)),
)


def owned_bytes() -> np.ndarray:
    """What lies in every owner's region."""
    return np.frombuffer(np.random.default_rng(SEED).bytes(NBYTES), dtype=np.uint8)


def fill(region: Region) -> None:
    region.tensor.copy_(torch.from_numpy(owned_bytes().copy()))


def bytes_of(region: Region) -> np.ndarray:
    return region.tensor.cpu().numpy()
