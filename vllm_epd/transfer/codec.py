# SPDX-License-Identifier: Apache-2.0
"""Compressed embeddings: one byte a number and one scale a row.

An item of `rows` x `width` numbers is encoded as `rows * width` bytes of codes in row order, then `4 * rows` bytes of
float32 scales; a number is its code times the scale of its row. `int8` has 127 steps to either side of zero, all of the
row's largest magnitude / 127. `fp8` is float8_e4m3, whose steps shrink with the number, so that small numbers beside a
large one keep their precision.

A row of zeros decodes to zeros. A row that holds NaN or infinity has NaN for a scale and decodes to NaN, so a broken
one is never mistaken for a sound one.
"""

from collections.abc import Sequence
from math import prod

import torch

from vllm_epd import ops

NONE = "none"
DTYPES = (torch.float16, torch.bfloat16, torch.float32)
"""What can be encoded."""

SCALE_BYTES = 4

CODECS = (NONE, *sorted(ops.CODECS))
"""Names of all codecs; with `none` an item is the bytes of its tensor."""


def encoded_bytes(rows: int, width: int, codec: str) -> int:
    """Size of an encoded item of `rows` x `width` numbers; KeyError for a codec that does not encode."""
    return rows * (width * int(ops.CODECS[codec].dtype.itemsize) + SCALE_BYTES)


def item_bytes(shape: Sequence[int], dtype: torch.dtype, codec: str) -> int | None:
    """Size of an item as `codec` writes it; None where it cannot write such a tensor."""
    if codec == NONE:
        return prod(shape) * int(dtype.itemsize)
    if codec not in ops.CODECS or dtype not in DTYPES or not shape:
        return None
    return encoded_bytes(prod(shape[:-1]), shape[-1], codec)


def encode(tensor: torch.Tensor, codec: str) -> torch.Tensor:
    """The item as uint8 [encoded bytes], on the tensor's device and without waiting for it.

    Args:
        tensor: [..., width] of one of `DTYPES`; all dimensions but the last count rows.
        codec: a name in `CODECS` other than `none`.
    """
    rows = _as_rows(tensor)
    encoded = torch.empty(encoded_bytes(rows.shape[0], rows.shape[1], codec), dtype=torch.uint8, device=rows.device)
    codes, scales = encoded[: rows.numel()], torch.empty(len(rows), dtype=torch.float32, device=rows.device)
    ops.quantize_rows(rows, codes.view(ops.CODECS[codec].dtype).view(rows.shape), scales, codec=codec)
    encoded[rows.numel() :].copy_(scales.view(torch.uint8))
    return encoded


def decode(encoded: torch.Tensor, shape: Sequence[int], dtype: torch.dtype, codec: str) -> torch.Tensor:
    """What `encode` was given, about: a tensor of `shape` and `dtype` on the device of `encoded`, uint8 [its size]."""
    codes = encoded[: prod(shape)].view(ops.CODECS[codec].dtype).view(prod(shape[:-1]), shape[-1])
    rows = torch.empty(codes.shape, dtype=dtype, device=encoded.device)
    ops.dequantize_rows(codes, scales_of(encoded, shape), rows, codec=codec)
    return rows.view(tuple(shape))


def scales_of(encoded: torch.Tensor, shape: Sequence[int]) -> torch.Tensor:
    """The scales of an encoded item of this shape, float32 [rows]; a copy, for they may lie where no float32 starts."""
    return encoded[prod(shape) :].clone().view(torch.float32)


def row_errors(tensor: torch.Tensor, decoded: torch.Tensor) -> torch.Tensor:
    """Euclidean norm of each row's error over that of the row itself, float64 [rows]; 0 for rows of zeros."""
    exact, found = _as_rows(tensor).double(), _as_rows(decoded).double()
    errors, norms = (found - exact).norm(dim=1), exact.norm(dim=1)
    return torch.where((errors == 0) & (norms == 0), errors, errors / norms)


def _as_rows(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.reshape(prod(tensor.shape[:-1]), tensor.shape[-1]).contiguous()
