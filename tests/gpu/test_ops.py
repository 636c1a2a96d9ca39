# SPDX-License-Identifier: Apache-2.0
"""Operations on rows in device memory: the CUDA kernels and their references, the same to the bit."""

import pytest

pytest.importorskip("torch")

import torch
from hypothesis import given, settings

from tests.contract.ops_cases import (
    DTYPES,
    LARGE,
    Coding,
    Layout,
    check_dequantize,
    check_gather,
    check_quantize,
    check_scatter,
    codings,
    copies,
)
from vllm_epd import ops
from vllm_epd.errors import KernelError
from vllm_epd.kernels import cuda

NEEDS = ("cupy",)
CUDA = torch.device("cuda", 0)
EXAMPLES = settings(max_examples=100, deadline=None)


def test_kernels_are_used():
    assert ops.implementation(CUDA) == "cuda"


@pytest.fixture(params=["compiled ahead", "from source"])
def _module(request, monkeypatch, tmp_path):
    """The kernels as nvcc has compiled them, and as CuPy does."""
    if request.param == "from source":
        for path in cuda.FOLDER.glob("*[!n]"):
            (tmp_path / path.name).write_bytes(path.read_bytes())
        monkeypatch.setattr(cuda, "FOLDER", tmp_path)
    elif not list(cuda.FOLDER.glob("*.fatbin")):
        pytest.skip("there was no nvcc to compile them")
    cuda._module.cache_clear()
    yield
    cuda._module.cache_clear()


@pytest.mark.usefixtures("_module")
@pytest.mark.parametrize("codec", ops.CODECS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_every_kernel_loads_and_is_its_reference(dtype, codec):
    case = Coding(Layout(8192), 64, tuple(range(63, 0, -2)), dtype, codec, seed=1)
    check_quantize(case, CUDA)
    check_dequantize(case, CUDA)
    check_gather(LARGE[0], CUDA)
    check_scatter(LARGE[0], CUDA)


@EXAMPLES
@given(copies(unique=False))
def test_gather_is_its_reference(case):
    check_gather(case, CUDA)


@EXAMPLES
@given(copies(unique=True))
def test_scatter_is_its_reference(case):
    check_scatter(case, CUDA)


@pytest.mark.parametrize("case", LARGE, ids=range(len(LARGE)))
def test_large_copies_are_their_references(case):
    check_gather(case, CUDA)
    check_scatter(case, CUDA)


@EXAMPLES
@given(codings(unique=False))
def test_quantize_is_its_reference(case):
    check_quantize(case, CUDA)


@EXAMPLES
@given(codings(unique=True))
def test_dequantize_is_its_reference(case):
    check_dequantize(case, CUDA)


@pytest.mark.parametrize("codec", ops.CODECS)
def test_codes_are_those_of_host_memory(codec):
    numbers = torch.randn(33, 777)
    on_host = torch.empty(33, 777, dtype=ops.CODECS[codec].dtype), torch.empty(33)
    on_device = tuple(tensor.to(CUDA) for tensor in on_host)
    ops.quantize_rows(numbers, *on_host, codec=codec)
    ops.quantize_rows(numbers.to(CUDA), *on_device, codec=codec)
    for here, there in zip(on_host, on_device, strict=True):
        assert torch.equal(here.view(torch.uint8), there.cpu().view(torch.uint8))


@pytest.mark.parametrize("where", ["cpu", "cuda"])
def test_a_row_out_of_range_raises_wherever_rows_are(where):
    plane, out = torch.zeros(4, 8, dtype=torch.uint8, device=CUDA), torch.ones(16, dtype=torch.uint8, device=CUDA)
    with pytest.raises(KernelError, match=r"rows\[1\] is 4"):
        ops.gather_rows([plane], torch.tensor([0, 4], device=where), out)
    torch.cuda.synchronize()
    assert out.all()


def test_operations_are_ordered_by_the_current_stream():
    stream = torch.cuda.Stream()
    plane, out = torch.zeros(64, 1 << 16, dtype=torch.uint8, device=CUDA), torch.zeros(64 << 16, dtype=torch.uint8)
    out = out.to(CUDA)
    torch.cuda.synchronize()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(int(2e8))
        plane.fill_(7)
        ops.gather_rows([plane], range(64), out)
        copied = out.clone()
    stream.synchronize()
    assert (copied == 7).all()
