# SPDX-License-Identifier: Apache-2.0
"""The kernels of csrc/*.cu, loaded and launched through CuPy."""

import functools
import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from vllm_epd.errors import KernelError

FOLDER = Path(__file__).parents[1] / "_cuda"
"""Where the build puts the sources, and what nvcc makes of them."""

OLDEST = (8, 0)
"""The oldest compute capability that they are written for."""

THREADS = 256
MOST_BLOCKS = 2**31 - 1


def usable(device: torch.device) -> bool:
    """Whether the kernels run on this CUDA device: CuPy and the sources are installed, and it is new enough."""
    installed = importlib.util.find_spec("cupy") is not None and FOLDER.is_dir()
    return installed and torch.cuda.get_device_capability(device) >= OLDEST


def launch(file: str, name: str, device: torch.device, blocks: tuple[int, int], arguments: Sequence[int]) -> None:
    """Start a kernel on the current stream of `device`.

    Args:
        file: the source that has it, without its suffix.
        name: the kernel.
        device: where to run it, and where all addresses of `arguments` are.
        blocks: of `THREADS` threads each, in two dimensions.
        arguments: addresses and numbers, each passed in 64 bits.

    Raises:
        KernelError: it does not compile or load, or its launch failed.
    """
    if blocks[0] > MOST_BLOCKS:
        raise KernelError(f"{name} would take {blocks[0]} blocks; {MOST_BLOCKS} are the most")
    if not blocks[0]:
        return
    import cupy

    index = device.index if device.index is not None else torch.cuda.current_device()
    stream = cupy.cuda.ExternalStream(torch.cuda.current_stream(device).cuda_stream)
    try:
        with cupy.cuda.Device(index), stream:
            _module(file).get_function(name)(blocks, (THREADS,), tuple(arguments))
    except Exception as error:  # noqa: BLE001  CuPy's errors share no base class that is there without a GPU
        raise KernelError(f"CUDA could not run {name}: {type(error).__name__}: {error}") from error


@functools.cache
def _module(file: str) -> Any:
    import cupy

    compiled = FOLDER / f"{file}.fatbin"
    if compiled.exists():
        return cupy.RawModule(path=str(compiled))
    source = (FOLDER / f"{file}.cu").read_text()
    return cupy.RawModule(code=source, options=("-std=c++17", f"-I{FOLDER}"))
