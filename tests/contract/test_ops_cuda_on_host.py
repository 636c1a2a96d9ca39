# SPDX-License-Identifier: Apache-2.0
"""The CUDA sources, compiled for the host and launched as on a device, against the references."""

import ctypes
import shutil
import subprocess
from pathlib import Path

import pytest

pytest.importorskip("torch")

import torch
from hypothesis import given, settings

from tests.contract.ops_cases import (
    DTYPES,
    Coding,
    Copy,
    Layout,
    check_dequantize,
    check_gather,
    check_quantize,
    check_scatter,
    codings,
    copies,
)
from vllm_epd import ops
from vllm_epd.kernels import cuda

ROOT = Path(__file__).parents[2]
CPU = torch.device("cpu")
EXAMPLES = settings(max_examples=40, deadline=None)
COMPILE = ("-O1", "-std=c++17", "-ffp-contract=off", "-shared", "-fPIC", f"-I{ROOT}/csrc")

pytestmark = [
    pytest.mark.skipif(not shutil.which("c++"), reason="there is no C++ compiler"),
    pytest.mark.usefixtures("_on_host"),
]


@pytest.fixture(scope="module")
def _on_host(tmp_path_factory):
    """Operations on host memory launch the CUDA kernels, which run on the host."""
    built = tmp_path_factory.mktemp("cuda") / "cuda_on_host.so"
    subprocess.run(["c++", *COMPILE, str(ROOT / "tests/fakes/cuda_on_host.cpp"), "-o", str(built)], check=True)
    library = ctypes.CDLL(str(built))

    def launch(_file, name, _device, blocks, arguments):
        if blocks[0]:
            six = (ctypes.c_longlong * 6)(*arguments)
            library.launch(getattr(library, name), *map(ctypes.c_uint, (*blocks, cuda.THREADS)), six)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cuda, "launch", launch)
        patch.setattr(ops, "implementation", lambda _: "cuda")
        yield


@EXAMPLES
@given(copies(unique=False))
def test_gather_is_its_reference(case):
    check_gather(case, CPU)


@EXAMPLES
@given(copies(unique=True))
def test_scatter_is_its_reference(case):
    check_scatter(case, CPU)


@pytest.mark.parametrize("before", [0, 3])
def test_pieces_of_more_than_one_block_are_copied_whole(before):
    widths = (3 * cuda.THREADS * 64 + 5, 16, 40000)
    case = Copy(tuple(Layout(width, gap=-width % 16) for width in widths), 4, (3, 1), packed_before=before)
    check_gather(case, CPU)
    check_scatter(case, CPU)


@EXAMPLES
@given(codings(unique=False))
def test_quantize_is_its_reference(case):
    check_quantize(case, CPU)


@EXAMPLES
@given(codings(unique=True))
def test_dequantize_is_its_reference(case):
    check_dequantize(case, CPU)


@pytest.mark.parametrize("codec", ops.CODECS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("width", [8192, 8190])
def test_rows_longer_than_a_block_takes_at_once(width, dtype, codec):
    case = Coding(Layout(width), 5, (4, 0, 2), dtype, codec, seed=3)
    check_quantize(case, CPU)
    check_dequantize(case, CPU)
