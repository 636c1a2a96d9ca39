# SPDX-License-Identifier: Apache-2.0
"""Kernels for host memory, compiled from csrc/. They take addresses, and `vllm_epd.ops` alone calls them.

Arrays are contiguous. `rows` are row numbers; None stands for the first rows in order. `threads` is the most to run
on. A table is that of `Planes`. `format` is 0 for float32, 1 for float16 and 2 for bfloat16; `code` is 0 for int8 and 1
for fp8. All raise IndexError where a row number is out of range, and RuntimeError, with file and line, where sizes do
not fit; nothing has been written then.
"""

import numpy as np
import numpy.typing as npt

_Int64 = npt.NDArray[np.int64]

def gather_rows(table: _Int64, num_rows: int, rows: _Int64, out: int, out_bytes: int, threads: int, /) -> None: ...
def scatter_rows(
    source: int, source_bytes: int, table: _Int64, num_rows: int, rows: _Int64, threads: int, /
) -> None: ...
def quantize_rows(
    source: int,
    stride_bytes: int,
    num_rows: int,
    width: int,
    format: int,
    rows: _Int64 | None,
    count: int,
    codes: int,
    scales: int,
    code: int,
    threads: int,
    /,
) -> None: ...
def dequantize_rows(
    out: int,
    stride_bytes: int,
    num_rows: int,
    width: int,
    format: int,
    rows: _Int64 | None,
    count: int,
    codes: int,
    scales: int,
    code: int,
    threads: int,
    /,
) -> None: ...
