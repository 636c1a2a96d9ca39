# SPDX-License-Identifier: Apache-2.0
"""The one piece of memory of an agent, allocated once and registered once."""

import fcntl
import mmap
import os
from collections.abc import Callable
from dataclasses import dataclass, field

import torch

from vllm_epd.errors import TransferError
from vllm_epd.transfer.warming import Warmer

SEAL_FUTURE_WRITE = 0x10
"""Linux 5.1: nobody maps the memory writable from now on. Python names it from 3.13 on."""


@dataclass(slots=True)
class Region:
    """Bytes that transports register: uint8, one dimension, contiguous.

    Attributes:
        tensor: the bytes.
        fd: the descriptor of memory that another process can map; None where there is none.
        reach: is told up to which byte it is in use or about to be.
    """

    tensor: torch.Tensor
    fd: int | None = None
    _on_close: Callable[[], None] = field(default=lambda: None, repr=False)
    reach: Callable[[int], None] = field(default=lambda end: None, repr=False)

    @property
    def nbytes(self) -> int:
        """Size in bytes."""
        return int(self.tensor.numel())

    @property
    def on_device(self) -> bool:
        """Whether it lies in device memory."""
        return bool(self.tensor.is_cuda)

    @property
    def device_index(self) -> int:
        """Index of its device; 0 for host memory."""
        return self.tensor.device.index or 0

    def close(self) -> None:
        """Free the memory once no tensor refers to it; a second call does nothing."""
        if self.tensor.numel():
            on_close, self._on_close = self._on_close, lambda: None
            on_close()
            self.tensor = torch.empty(0, dtype=torch.uint8)


def host_region(nbytes: int, *, page_locked: bool = False) -> Region:
    """Host memory that the kernel frees with its last user, however that ends: it has no name to be left behind.

    It can neither shrink nor grow, and whoever is handed its descriptor can only read.

    Args:
        nbytes: its size.
        page_locked: for copies from and to a CUDA device.

    Raises:
        TransferError: there is not so much memory.
    """
    try:
        fd = os.memfd_create("epd-pool", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        os.ftruncate(fd, nbytes)
        memory = mmap.mmap(fd, nbytes)
    except OSError as error:
        raise TransferError(f"cannot allocate a pool of {nbytes} bytes: {error}") from error
    _seal(fd)
    region = Region(torch.frombuffer(memory, dtype=torch.uint8), fd, lambda: os.close(fd))
    if page_locked:
        _page_lock(region)
    else:
        _keep_warm(region)
    return region


def _seal(fd: int) -> None:
    fixed = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW
    try:
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fixed | SEAL_FUTURE_WRITE | fcntl.F_SEAL_SEAL)
    except OSError:  # an older kernel
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fixed | fcntl.F_SEAL_SEAL)


def _keep_warm(region: Region) -> None:
    warmer, close = Warmer(region.tensor.data_ptr(), region.nbytes), region._on_close

    def stop_and_close() -> None:
        warmer.close()
        close()

    region.reach, region._on_close = warmer.reach, stop_and_close


def _page_lock(region: Region) -> None:
    runtime, address = torch.cuda.cudart(), region.tensor.data_ptr()
    if (status := int(runtime.cudaHostRegister(address, region.nbytes, 0))) != 0:
        region.close()
        raise TransferError(f"cannot page-lock a pool of {region.nbytes} bytes: CUDA error {status}")
    close = region._on_close

    def unlock_and_close() -> None:
        runtime.cudaHostUnregister(address)
        close()

    region._on_close = unlock_and_close
