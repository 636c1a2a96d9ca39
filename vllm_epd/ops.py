# SPDX-License-Identifier: Apache-2.0
"""Operations on rows of tensors: packing them into one run of bytes, and coding them in one byte per number.

Each is written three times with the same results to the bit: compiled for host memory (`vllm_epd._C`), for CUDA
(`vllm_epd.kernels.cuda`), and here in torch as `reference_*`, which serves where the others are not there. This module
alone imports the compiled one.

Row numbers are looked at on the host before anything is written, so that one out of range raises and changes nothing. A
list or a tensor in host memory costs no more than that; a tensor on a device is copied to the host first, which waits
for the device. Everything else on a device is ordered by its current stream, like torch's own operations. Inputs and
outputs must not overlap.

All raise KernelError where an argument is not what is documented here.
"""

from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch

from vllm_epd.errors import KernelError
from vllm_epd.kernels import cuda
from vllm_epd.kernels.arguments import (
    CODECS,
    FORMATS,
    Numbers,
    Planes,
    RowNumbers,
    check_coded,
    check_packed,
    check_range,
    check_rows_disjoint,
    check_writable,
)

try:
    import vllm_epd._C as _native  # noqa: N811  a module, not a constant
except ModuleNotFoundError:  # it is not built; one that is built and does not load raises
    _native = None  # type: ignore[assignment]

__all__ = [
    "CODECS",
    "Planes",
    "RowNumbers",
    "dequantize_rows",
    "gather_rows",
    "implementation",
    "quantize_rows",
    "reference_dequantize_rows",
    "reference_gather_rows",
    "reference_quantize_rows",
    "reference_scatter_rows",
    "scatter_rows",
]

Implementation = Literal["cpu", "cuda", "reference"]

_HOST = torch.device("cpu")

_FORMAT_NUMBERS = {dtype: number for number, dtype in enumerate(FORMATS)}
_CODE_NUMBERS = {codec: number for number, codec in enumerate(CODECS)}

_BYTES_PER_BLOCK = cuda.THREADS * 16 * 4
"""What one block of a CUDA copy takes in four rounds of 16-byte vectors."""

_MOST_PARTS = 65535
"""Of one piece: the largest grid in its second dimension."""


def implementation(device: torch.device | str) -> Implementation:
    """Which of the implementations serves tensors on this device."""
    device = torch.device(device) if isinstance(device, str) else device
    if device == _HOST or device.type == "cpu":  # the first is a tensor's, and told without making a string of it
        return "cpu" if _native is not None else "reference"
    return "cuda" if device.type == "cuda" and cuda.usable(device) else "reference"


def gather_rows(planes: Planes | Sequence[torch.Tensor], rows: RowNumbers, out: torch.Tensor) -> None:
    """Pack rows into `out`: for each of `rows`, the pieces of all planes one after the other.

    Args:
        planes: `Planes`, or the tensors for them.
        rows: which ones, in which order; a row may come twice.
        out: uint8 [len(rows) * row_bytes], contiguous, on the planes' device.
    """
    planes = _as_planes(planes)
    numbers = check_packed(planes, rows, "out", out)
    chosen = implementation(planes.device)
    if chosen == "cpu":
        _on_cpu(_native.gather_rows, planes.table, planes.num_rows, numbers, out.data_ptr(), out.numel())
    elif chosen == "cuda":
        _launch_copy("gather_rows", planes, numbers, out)
    else:
        reference_gather_rows(planes.tensors, _on_device(numbers, planes.num_rows, planes.device), out)


def reference_gather_rows(planes: Sequence[torch.Tensor], rows: torch.Tensor, out: torch.Tensor) -> None:
    """`gather_rows` in torch, unchecked; `rows` is on the planes' device."""
    widths = [plane.shape[1] for plane in planes]
    pieces = out.view(len(rows), sum(widths)).split(widths, dim=1)
    for plane, piece in zip(planes, pieces, strict=True):
        piece.copy_(plane[rows])


def scatter_rows(source: torch.Tensor, planes: Planes | Sequence[torch.Tensor], rows: RowNumbers) -> None:
    """Unpack what `gather_rows` packs: its inverse.

    Args:
        source: uint8 [len(rows) * row_bytes], contiguous, on the planes' device.
        planes: `Planes`, or the tensors for them; rows of a plane must not overlap each other.
        rows: which ones to write, in the order of `source`. Of a row that comes twice, any bytes of either may stay.
    """
    planes = _as_planes(planes)
    numbers = check_packed(planes, rows, "source", source)
    check_writable(planes)
    chosen = implementation(planes.device)
    if chosen == "cpu":
        _on_cpu(_native.scatter_rows, source.data_ptr(), source.numel(), planes.table, planes.num_rows, numbers)
    elif chosen == "cuda":
        _launch_copy("scatter_rows", planes, numbers, source)
    else:
        reference_scatter_rows(source, planes.tensors, _on_device(numbers, planes.num_rows, planes.device))


def reference_scatter_rows(source: torch.Tensor, planes: Sequence[torch.Tensor], rows: torch.Tensor) -> None:
    """`scatter_rows` in torch, unchecked; `rows` is on the planes' device."""
    widths = [plane.shape[1] for plane in planes]
    pieces = source.view(len(rows), sum(widths)).split(widths, dim=1)
    for plane, piece in zip(planes, pieces, strict=True):
        plane[rows] = piece


def quantize_rows(
    source: torch.Tensor,
    codes: torch.Tensor,
    scales: torch.Tensor,
    *,
    codec: str,
    rows: RowNumbers | None = None,
) -> None:
    """Code rows in one byte per number, each scaled by its largest magnitude, and gather them on the way.

    In float32: scale = largest magnitude / `CODECS[codec].largest`, and code = number / scale, rounded to the nearest
    and ties to even. A row of zeros has scale 0 and codes 0; so has one whose scale is too small for a float32 (largest
    magnitude below 1e-43). A row with NaN or infinity in it has scale NaN and codes 0, and no other row is affected:
    `scales.isfinite()` tells which rows can be used.

    Args:
        source: float32, float16 or bfloat16 [num_rows, width]; rows are contiguous, and as far apart as they like.
        codes: `CODECS[codec].dtype` [number of rows chosen, width], contiguous; written.
        scales: float32 [number of rows chosen], contiguous; written.
        codec: one of `CODECS`.
        rows: which ones, in which order; a row may come twice. None for all.
    """
    numbers = check_coded("source", source, codes, scales, codec, rows)
    chosen = implementation(source.device)
    if chosen == "cpu":
        _on_cpu(_native.quantize_rows, *_codec_arguments(source, codes, scales, codec, numbers))
    elif chosen == "cuda":
        _launch_codec("quantize", source, codes, scales, codec, numbers)
    else:
        reference_quantize_rows(source, codes, scales, codec=codec, rows=_chosen_rows(numbers, source))


def reference_quantize_rows(
    source: torch.Tensor, codes: torch.Tensor, scales: torch.Tensor, *, codec: str, rows: torch.Tensor | None
) -> None:
    """`quantize_rows` in torch, unchecked; `rows` is on the source's device."""
    largest_code = CODECS[codec].largest
    values = (source.detach() if rows is None else source.detach()[rows]).float()
    largest = values.abs().amax(dim=1) if values.shape[1] else values.new_zeros(len(values))
    # By a tensor: torch multiplies by the inverse of a number on some devices, which rounds otherwise.
    scale = largest / torch.full_like(largest, largest_code)
    scale[~scale.isfinite()] = torch.nan
    scaled = (values / scale[:, None]).clamp(-largest_code, largest_code)
    scaled[~(scale > 0)] = 0
    codes.copy_(scaled.round() if codec == "int8" else scaled)
    scales.copy_(scale)


def dequantize_rows(
    codes: torch.Tensor,
    scales: torch.Tensor,
    out: torch.Tensor,
    *,
    codec: str,
    rows: RowNumbers | None = None,
) -> None:
    """Turn codes back into numbers, and scatter the rows on the way.

    Each number is code * scale, in float32 and then rounded to the dtype of `out`. A row whose scale is NaN or infinite
    becomes NaN. Rows of `out` that are not named stay as they are.

    Args:
        codes: `CODECS[codec].dtype` [number of rows, width], contiguous.
        scales: float32 [number of rows], contiguous.
        out: float32, float16 or bfloat16 [num_rows, width]; rows are contiguous and do not overlap; written.
        codec: one of `CODECS`.
        rows: where each row goes. Of a row that comes twice, any numbers of either may stay. None for all in order.
    """
    numbers = check_coded("out", out, codes, scales, codec, rows)
    check_rows_disjoint("out", out)
    chosen = implementation(out.device)
    if chosen == "cpu":
        _on_cpu(_native.dequantize_rows, *_codec_arguments(out, codes, scales, codec, numbers))
    elif chosen == "cuda":
        _launch_codec("dequantize", out, codes, scales, codec, numbers)
    else:
        reference_dequantize_rows(codes, scales, out, codec=codec, rows=_chosen_rows(numbers, out))


def reference_dequantize_rows(
    codes: torch.Tensor, scales: torch.Tensor, out: torch.Tensor, *, codec: str, rows: torch.Tensor | None
) -> None:
    """`dequantize_rows` in torch, unchecked; `rows` is on the device of `out`."""
    values = (codes.float() * scales[:, None]).to(out.dtype)
    values[~scales.isfinite()] = torch.nan
    if rows is None:
        out.copy_(values)
    else:
        out[rows] = values


def _as_planes(planes: Planes | Sequence[torch.Tensor]) -> Planes:
    return planes if isinstance(planes, Planes) else Planes(planes)


def _on_cpu(kernel: Callable[..., None], *arguments: Any) -> None:
    """Run a kernel of the extension, which checks the row numbers itself."""
    try:
        kernel(*arguments, torch.get_num_threads())
    except IndexError as error:
        raise KernelError(str(error)) from None


def _on_device(numbers: Numbers, limit: int, device: torch.device) -> torch.Tensor:
    """The row numbers where the rows are, once all of them are below `limit`."""
    check_range(numbers, limit)
    return torch.from_numpy(numbers).to(device)


def _chosen_rows(numbers: Numbers | None, matrix: torch.Tensor) -> torch.Tensor | None:
    return None if numbers is None else _on_device(numbers, matrix.shape[0], matrix.device)


def _launch_copy(kernel: str, planes: Planes, numbers: Numbers, packed: torch.Tensor) -> None:
    rows, table = _on_device(numbers, planes.num_rows, planes.device), planes.table_on_device()
    parts = max(1, min(-(-planes.widest // _BYTES_PER_BLOCK), _MOST_PARTS))
    arguments = (table.data_ptr(), len(planes.tensors), planes.row_bytes, rows.data_ptr(), packed.data_ptr())
    cuda.launch("gather_scatter", kernel, planes.device, (len(numbers) * len(planes.tensors), parts), arguments)


def _launch_codec(
    kernel: str, matrix: torch.Tensor, codes: torch.Tensor, scales: torch.Tensor, codec: str, numbers: Numbers | None
) -> None:
    rows = _chosen_rows(numbers, matrix)
    stride_bytes = matrix.stride(0) * matrix.element_size()
    arguments = (
        matrix.data_ptr(),
        stride_bytes,
        matrix.shape[1],
        0 if rows is None else rows.data_ptr(),
        codes.data_ptr(),
        scales.data_ptr(),
    )
    name = f"{kernel}_{FORMATS[matrix.dtype]}_{codec}"
    cuda.launch("codec", name, matrix.device, (len(codes), 1), arguments)


def _codec_arguments(
    matrix: torch.Tensor, codes: torch.Tensor, scales: torch.Tensor, codec: str, numbers: Numbers | None
) -> tuple[Any, ...]:
    """What both codec functions of the extension take."""
    return (
        matrix.data_ptr(),
        matrix.stride(0) * matrix.element_size(),
        matrix.shape[0],
        matrix.shape[1],
        _FORMAT_NUMBERS[matrix.dtype],
        numbers,
        len(codes),
        codes.data_ptr(),
        scales.data_ptr(),
        _CODE_NUMBERS[codec],
    )
