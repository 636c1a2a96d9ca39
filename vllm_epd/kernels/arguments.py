# SPDX-License-Identifier: Apache-2.0
"""What the operations are given, and the checks of it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import torch

from vllm_epd.errors import KernelError

RowNumbers: TypeAlias = Sequence[int] | torch.Tensor
"""Integers, or an int64 tensor of one dimension."""

Numbers: TypeAlias = npt.NDArray[np.int64]
"""Row numbers in host memory, contiguous. Whether a tensor has such rows is not known yet."""


@dataclass(frozen=True, slots=True)
class Codec:
    """How a number becomes one byte.

    Attributes:
        dtype: of the codes.
        largest: what the largest magnitude of a row is mapped to.
    """

    dtype: torch.dtype
    largest: float


CODECS: Mapping[str, Codec] = {
    "int8": Codec(torch.int8, 127.0),
    "fp8": Codec(torch.float8_e4m3fn, 448.0),
}

FORMATS: Mapping[torch.dtype, str] = {
    torch.float32: "float32",
    torch.float16: "float16",
    torch.bfloat16: "bfloat16",
}
"""What can be coded, by its name among the kernels."""


class Planes:
    """Byte matrices with the same rows, for example K and V of every layer of a paged cache, a row being a block.

    To check many tensors takes longer than to copy a few rows: whoever copies from the same ones again keeps this.

    Args:
        tensors: uint8 [num_rows, width of the plane] each, on one device; a row is contiguous, and rows are as far
            apart as they like.

    Attributes:
        tensors: those given.
        num_rows: rows of every plane.
        row_bytes: bytes of one row of all planes together.
        widest: bytes of one row of the widest plane.
        device: where they are.
        overlapping: the first plane whose rows overlap each other, which cannot be written; None where none does.
        table: int64 [4, planes] in host memory: address, bytes from row to row, bytes of a row, offset within a packed
            row.

    Raises:
        KernelError: there is no tensor, or one is not as said.
    """

    def __init__(self, tensors: Sequence[torch.Tensor]) -> None:
        if not tensors:
            raise KernelError("no planes given; expected at least one")
        self.tensors = tuple(tensors)
        self.num_rows = int(tensors[0].shape[0]) if tensors[0].dim() else 0
        self.device = tensors[0].device
        for i, tensor in enumerate(tensors):
            check_tensor(f"plane {i}", tensor, (torch.uint8,), (self.num_rows, None), self.device)
            check_rows_contiguous(f"plane {i}", tensor)
        self.overlapping = next((i for i, tensor in enumerate(tensors) if _rows_overlap(tensor)), None)
        widths = [int(tensor.shape[1]) for tensor in tensors]
        self.row_bytes = sum(widths)
        self.widest = max(widths)
        addresses = [tensor.data_ptr() for tensor in tensors]
        strides = [tensor.stride(0) for tensor in tensors]
        offsets = [sum(widths[:i]) for i in range(len(widths))]
        self.table: Numbers = np.array([addresses, strides, widths, offsets], dtype=np.int64)
        self._device_table: torch.Tensor | None = None

    def table_on_device(self) -> torch.Tensor:
        """The table, where the planes are."""
        if self._device_table is None:
            self._device_table = torch.from_numpy(self.table).to(self.device)
        return self._device_table


def check_writable(planes: Planes) -> None:
    """Raise where rows of a plane overlap."""
    if planes.overlapping is not None:
        check_rows_disjoint(f"plane {planes.overlapping}", planes.tensors[planes.overlapping])


def check_packed(planes: Planes, rows: RowNumbers, name: str, packed: torch.Tensor) -> Numbers:
    """The rows' numbers, where `packed` has room for just these rows."""
    numbers = check_numbers(rows)
    check_tensor(name, packed, (torch.uint8,), (len(numbers) * planes.row_bytes,), planes.device)
    check_contiguous(name, packed)
    return numbers


def check_coded(
    name: str,
    matrix: torch.Tensor,
    codes: torch.Tensor,
    scales: torch.Tensor,
    codec: str,
    rows: RowNumbers | None,
) -> Numbers | None:
    """The rows' numbers, where codes and scales are those of so many rows of `matrix`."""
    if codec not in CODECS:
        raise KernelError(f"no codec {codec!r}; there are {', '.join(CODECS)}")
    check_tensor(name, matrix, tuple(FORMATS), (None, None), matrix.device)
    check_rows_contiguous(name, matrix)
    numbers = None if rows is None else check_numbers(rows)
    count = int(matrix.shape[0]) if numbers is None else len(numbers)
    check_tensor("codes", codes, (CODECS[codec].dtype,), (count, int(matrix.shape[1])), matrix.device)
    check_tensor("scales", scales, (torch.float32,), (count,), matrix.device)
    check_contiguous("codes", codes)
    check_contiguous("scales", scales)
    return numbers


def check_numbers(rows: RowNumbers) -> Numbers:
    """Row numbers as an array in host memory."""
    if isinstance(rows, torch.Tensor):
        check_tensor("rows", rows, (torch.int64,), (rows.numel(),), rows.device)
        given: npt.NDArray[Any] = (rows if rows.is_cpu else rows.cpu()).numpy()
    else:
        given = np.asarray(rows) if len(rows) else np.empty(0, np.int64)
    if given.ndim != 1 or given.dtype.kind not in "iu":
        raise KernelError(f"rows are {given.dtype} {list(given.shape)}; expected integers in one dimension")
    return np.ascontiguousarray(given, dtype=np.int64)


def check_range(numbers: Numbers, limit: int) -> None:
    """Raise unless all of them are in 0..limit - 1."""
    wrong = np.flatnonzero((numbers < 0) | (numbers >= limit))
    if wrong.size:
        raise KernelError(f"rows[{wrong[0]}] is {numbers[wrong[0]]}; expected 0 to {limit - 1}")


def check_tensor(
    name: str,
    tensor: torch.Tensor,
    dtypes: Sequence[torch.dtype],
    shape: tuple[int | None, ...],
    device: torch.device,
) -> None:
    """Raise unless dtype, shape and device are as expected; None in a shape is any size."""
    if not _fits(tensor.shape, shape) or tensor.dtype not in dtypes or tensor.device != device:
        expected = " or ".join(str(dtype).removeprefix("torch.") for dtype in dtypes)
        sizes = ", ".join("any" if size is None else str(size) for size in shape)
        raise KernelError(
            f"{name} is {str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)} on {tensor.device};"
            f" expected {expected} [{sizes}] on {device}"
        )


def check_contiguous(name: str, tensor: torch.Tensor) -> None:
    """Raise unless it is contiguous."""
    if not tensor.is_contiguous():
        raise KernelError(f"{name} has strides {tensor.stride()}; expected it contiguous")


def check_rows_contiguous(name: str, tensor: torch.Tensor) -> None:
    """Raise unless each row is contiguous."""
    if tensor.shape[1] > 1 and tensor.stride(1) != 1:
        raise KernelError(f"{name} has stride {tensor.stride(1)} within a row; expected 1")


def check_rows_disjoint(name: str, tensor: torch.Tensor) -> None:
    """Raise where rows overlap, in which nothing can be written."""
    if _rows_overlap(tensor):
        raise KernelError(f"{name} has stride {tensor.stride(0)} for rows of {tensor.shape[1]}, which overlap")


def _fits(shape: torch.Size, expected: tuple[int | None, ...]) -> bool:
    if shape == expected:
        return True
    return len(shape) == len(expected) and all(want in (None, size) for want, size in zip(expected, shape, strict=True))


def _rows_overlap(tensor: torch.Tensor) -> bool:
    return bool(tensor.shape[0] > 1 and tensor.stride(0) < tensor.shape[1])
