# SPDX-License-Identifier: Apache-2.0
"""Operations on rows in host memory: compiled and in torch, the same to the bit, and true to what they promise."""

import os
import shutil

import pytest

pytest.importorskip("torch")

import torch
from hypothesis import given, settings

from tests.contract import ops_cases
from tests.contract.ops_cases import DTYPES, LARGE, assert_same_bits, check_gather, check_scatter, codings, copies
from vllm_epd import ops
from vllm_epd.errors import KernelError

CPU = torch.device("cpu")
NATIVE = pytest.mark.skipif(ops.implementation(CPU) != "cpu", reason="the extension is not built")
EXAMPLES = settings(max_examples=150, deadline=None)


@pytest.fixture(params=["cpu", "reference"])
def either(request, monkeypatch):
    """The compiled implementation, and then the one in torch."""
    if request.param == "reference":
        monkeypatch.setattr(ops, "_native", None)
    elif ops.implementation(CPU) != "cpu":
        pytest.skip("the extension is not built")
    assert ops.implementation("cpu") == request.param


@pytest.mark.skipif(os.environ.get("EPD_BUILD_EXT") == "0", reason="EPD_BUILD_EXT=0")
@pytest.mark.skipif(not shutil.which("c++"), reason="there is no C++ compiler")
def test_extension_is_built_where_there_is_a_compiler():
    assert ops.implementation("cpu") == "cpu"


def test_a_device_without_kernels_is_served_by_torch():
    assert ops.implementation("meta") == "reference"


@NATIVE
@EXAMPLES
@given(copies(unique=False))
def test_gather_is_its_reference(case):
    check_gather(case, CPU)


@NATIVE
@EXAMPLES
@given(copies(unique=True))
def test_scatter_is_its_reference(case):
    check_scatter(case, CPU)


@NATIVE
@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("case", LARGE, ids=range(len(LARGE)))
def test_large_copies_are_their_references(case, threads, monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    check_gather(case, CPU)
    check_scatter(case, CPU)


@NATIVE
@EXAMPLES
@given(codings(unique=False))
def test_quantize_is_its_reference(case):
    ops_cases.check_quantize(case, CPU)


@NATIVE
@EXAMPLES
@given(codings(unique=True))
def test_dequantize_is_its_reference(case):
    ops_cases.check_dequantize(case, CPU)


@NATIVE
@pytest.mark.parametrize("codec", ops.CODECS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_codecs_on_threads_are_their_references(dtype, codec, monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    layout = ops_cases.Layout(4096, gap=8)
    rows = tuple(range(0, 1400, 2))
    case = ops_cases.Coding(layout, 1400, rows, dtype, codec, seed=1)
    ops_cases.check_quantize(case, CPU)
    ops_cases.check_dequantize(case, CPU)


@NATIVE
@pytest.mark.parametrize("codec", ops.CODECS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_every_16_bit_number_is_coded_as_by_the_reference(dtype, codec):
    every = torch.arange(2**16).to(torch.int16).view(dtype)
    finite = every[every.isfinite()]
    for matrix in (every[:, None], finite[None], finite[finite.abs() < 1e-3][None]):
        assert_quantizes_like_reference(matrix, codec)


def assert_quantizes_like_reference(matrix, codec):
    codes = torch.empty(matrix.shape, dtype=ops.CODECS[codec].dtype)
    scales = torch.empty(len(matrix))
    expected_codes, expected_scales = torch.empty_like(codes), torch.empty_like(scales)
    ops.quantize_rows(matrix, codes, scales, codec=codec)
    ops.reference_quantize_rows(matrix, expected_codes, expected_scales, codec=codec, rows=None)
    assert_same_bits(codes, expected_codes)
    assert_same_bits(scales, expected_scales)


@pytest.mark.usefixtures("either")
def test_rows_are_packed_plane_after_plane():
    first = torch.arange(12, dtype=torch.uint8).view(3, 4)
    second = torch.arange(100, 106, dtype=torch.uint8).view(3, 2)
    out = torch.empty(12, dtype=torch.uint8)
    ops.gather_rows([first, second], [2, 0], out)
    assert out.tolist() == [8, 9, 10, 11, 104, 105, 0, 1, 2, 3, 100, 101]
    ops.scatter_rows(out, ops.Planes([first, second]), torch.tensor([0, 1]))
    assert first.tolist() == [[8, 9, 10, 11], [0, 1, 2, 3], [8, 9, 10, 11]]
    assert second.tolist() == [[104, 105], [100, 101], [104, 105]]


@pytest.mark.usefixtures("either")
@pytest.mark.parametrize(
    ("codec", "numbers", "codes", "scale"),
    [
        ("int8", [-254.0, 1.0, 3.0, 0.0, 254.0], [-127, 0, 2, 0, 127], 2.0),
        ("fp8", [448.0, -448.0, 17.0, 0.001953125, -0.0], [0x7E, 0xFE - 256, 0x58, 1, -128], 1.0),
    ],
)
@pytest.mark.parametrize("dtype", DTYPES)
def test_codes_are_the_nearest(codec, numbers, codes, scale, dtype):
    got, scales = torch.empty(1, 5, dtype=ops.CODECS[codec].dtype), torch.empty(1)
    ops.quantize_rows(torch.tensor([numbers], dtype=dtype), got, scales, codec=codec)
    assert scales.tolist() == [scale]
    assert got.view(torch.int8)[0].tolist() == codes


# Half of what lies between two codes: of all int8 codes 1, of fp8 2^-3 of the number, and 2^-9 near zero.
BOUNDS = {
    "int8": lambda numbers, scales: scales * 0.5 + 0 * numbers,
    "fp8": lambda numbers, scales: torch.maximum(numbers.abs() * 2**-4, scales * 2**-10),
}


@pytest.mark.usefixtures("either")
@pytest.mark.parametrize("codec", ops.CODECS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_what_is_coded_comes_back_within_half_a_code(codec, dtype):
    numbers = (torch.randn(64, 333) * torch.logspace(-3, 3, 64)[:, None]).to(dtype)
    codes, scales = torch.empty(64, 333, dtype=ops.CODECS[codec].dtype), torch.empty(64)
    back = torch.full((100, 333), 5.0)
    rows = torch.randperm(100)[:64]
    ops.quantize_rows(numbers, codes, scales, codec=codec)
    ops.dequantize_rows(codes, scales, back, codec=codec, rows=rows)
    error = (back[rows] - numbers.float()).abs()
    assert (error <= BOUNDS[codec](numbers.float(), scales[:, None]) * 1.0001).all()
    assert error.max() > 0
    others = torch.ones(100, dtype=torch.bool).index_fill(0, rows, value=False)
    assert (back[others] == 5).all()


@pytest.mark.usefixtures("either")
@pytest.mark.parametrize("codec", ops.CODECS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_rows_of_zeros_and_rows_that_are_not_finite(codec, dtype):
    matrix = torch.ones(6, 40, dtype=dtype)
    matrix[0] = 0
    matrix[1] = -0.0
    matrix[2, 39], matrix[3, 0], matrix[4, 20] = torch.nan, torch.inf, -torch.inf
    codes, scales = torch.ones(6, 40, dtype=torch.int8).view(ops.CODECS[codec].dtype), torch.ones(6)
    ops.quantize_rows(matrix, codes, scales, codec=codec)
    assert scales.isfinite().tolist() == [True, True, False, False, False, True]
    assert scales.view(torch.int32)[:5].tolist() == [0, 0, 0x7FC00000, 0x7FC00000, 0x7FC00000]
    assert not codes.view(torch.int8)[:5].any()
    out = torch.full((6, 40), 5.0, dtype=dtype)
    ops.dequantize_rows(codes, scales, out, codec=codec)
    assert_same_bits(out[:2], torch.zeros(2, 40, dtype=dtype))
    assert_same_bits(out[2:5], torch.full((3, 40), torch.nan, dtype=dtype))
    assert (out[5] == 1).all()


@pytest.mark.usefixtures("either")
def test_a_row_too_small_for_a_scale_is_zero():
    codes, scales = torch.ones(2, 3, dtype=torch.int8), torch.ones(2)
    ops.quantize_rows(torch.full((2, 3), 1e-44), codes, scales, codec="int8")
    assert not scales.any()
    assert not codes.any()


def byte_planes(*widths):
    return [torch.ones(4, width, dtype=torch.uint8) for width in widths]


OUT = torch.zeros(10, dtype=torch.uint8)
BAD_COPIES = {
    "no planes": ([], [0], OUT, "no planes given"),
    "dtype of a plane": (
        [torch.ones(4, 5)],
        [0],
        OUT,
        r"plane 0 is float32 \[4, 5\] on cpu; expected uint8 \[4, any\]",
    ),
    "rows of planes": ([*byte_planes(5), torch.ones(3, 5, dtype=torch.uint8)], [0], OUT, r"plane 1 is uint8 \[3, 5\]"),
    "dimensions of a plane": ([torch.ones(4, dtype=torch.uint8)], [0], OUT, r"plane 0 is uint8 \[4\]"),
    "stride in a row": ([torch.ones(10, 4, dtype=torch.uint8).t()], [0], OUT, "plane 0 has stride 4 within a row"),
    "device of a plane": ([*byte_planes(5), byte_planes(5)[0].to("meta")], [0], OUT, "plane 1 is .* on meta"),
    "a row too many": (byte_planes(5), [0, 4], OUT, r"rows\[1\] is 4; expected 0 to 3"),
    "a row before the first": (byte_planes(5), [-1, 0], OUT, r"rows\[0\] is -1"),
    "a row beyond 32 bits": (byte_planes(5), torch.tensor([2**40, 0]), OUT, r"rows\[0\] is 1099511627776"),
    "a row beyond 64 bits": (byte_planes(5), [2**80, 0], OUT, "rows are object"),
    "rows that are no integers": (byte_planes(5), [0.0, 1.0], OUT, r"rows are float64 \[2\]"),
    "rows of 32 bits": (byte_planes(5), torch.zeros(2, dtype=torch.int32), OUT, "rows is int32"),
    "rows of two dimensions": (byte_planes(5), torch.zeros(2, 1, dtype=torch.int64), OUT, r"rows is int64 \[2, 1\]"),
    "size of the packed": (byte_planes(5, 1), [0, 1], OUT, r"is uint8 \[10\] on cpu; expected uint8 \[12\] on cpu"),
    "dtype of the packed": (byte_planes(5), [0, 1], OUT.view(torch.int8), "is int8"),
    "gaps in the packed": (byte_planes(5), [0, 1], torch.zeros(20, dtype=torch.uint8)[::2], r"has strides \(2,\)"),
}


@pytest.mark.usefixtures("either")
@pytest.mark.parametrize(("planes", "rows", "packed", "message"), BAD_COPIES.values(), ids=BAD_COPIES)
def test_copies_refuse(planes, rows, packed, message):
    with pytest.raises(KernelError, match=message):
        ops.gather_rows(planes, rows, packed)
    with pytest.raises(KernelError, match=message):
        ops.scatter_rows(packed, planes, rows)
    assert all(plane.all() for plane in planes if not plane.is_meta)
    assert not packed.any()


@pytest.mark.usefixtures("either")
def test_scatter_refuses_planes_whose_rows_overlap():
    overlapping = torch.zeros(9, dtype=torch.uint8).as_strided((4, 5), (1, 1))
    ops.gather_rows([overlapping], [0, 3], torch.empty(10, dtype=torch.uint8))
    with pytest.raises(KernelError, match="plane 0 has stride 1 for rows of 5"):
        ops.scatter_rows(OUT, [overlapping], [0, 1])


CODES, SCALES = torch.zeros(4, 6, dtype=torch.int8), torch.zeros(4)
BAD_CODINGS = {
    "codec": (torch.ones(4, 6), CODES, SCALES, "int4", None, "no codec 'int4'; there are int8, fp8"),
    "dtype": (torch.ones(4, 6).double(), CODES, SCALES, "int8", None, "is float64 .*float32 or float16 or bfloat16"),
    "dimensions": (torch.ones(24), CODES, SCALES, "int8", None, r"is float32 \[24\]"),
    "stride in a row": (torch.ones(6, 4).t(), CODES, SCALES, "int8", None, "has stride 4 within a row"),
    "dtype of the codes": (torch.ones(4, 6), CODES, SCALES, "fp8", None, "codes is int8 .* expected float8_e4m3fn"),
    "shape of the codes": (torch.ones(4, 6), CODES, SCALES, "int8", [0], r"codes is int8 \[4, 6\].*\[1, 6\]"),
    "shape of the scales": (torch.ones(4, 6), CODES, SCALES[:3], "int8", None, r"scales is float32 \[3\]"),
    "dtype of the scales": (torch.ones(4, 6), CODES, SCALES.half(), "int8", None, "scales is float16"),
    "gaps in the codes": (
        torch.ones(4, 6),
        torch.zeros(4, 7, dtype=torch.int8)[:, :6],
        SCALES,
        "int8",
        None,
        "codes has strides",
    ),
    "a row too many": (torch.ones(4, 6), CODES, SCALES, "int8", [0, 1, 2, 4], r"rows\[3\] is 4; expected 0 to 3"),
}


@pytest.mark.usefixtures("either")
@pytest.mark.parametrize(
    ("matrix", "codes", "scales", "codec", "rows", "message"), BAD_CODINGS.values(), ids=BAD_CODINGS
)
def test_codecs_refuse(matrix, codes, scales, codec, rows, message):
    with pytest.raises(KernelError, match=message):
        ops.quantize_rows(matrix, codes, scales, codec=codec, rows=rows)
    with pytest.raises(KernelError, match=message):
        ops.dequantize_rows(codes, scales, matrix, codec=codec, rows=rows)
    assert (matrix == 1).all()
    assert not codes.any()
    assert not scales.any()


@pytest.mark.usefixtures("either")
def test_dequantize_refuses_rows_that_overlap():
    with pytest.raises(KernelError, match="out has stride 0 for rows of 6"):
        ops.dequantize_rows(CODES, SCALES, torch.zeros(1, 6).expand(4, 6), codec="int8")


@NATIVE
@pytest.mark.parametrize("row", [-1, 4, 2**62])
def test_kernels_themselves_refuse_a_row_out_of_range(row):
    planes = ops.Planes(byte_planes(5))
    rows, packed = torch.tensor([0, row]).numpy(), torch.full((10,), 2, dtype=torch.uint8)
    with pytest.raises(IndexError, match=rf"rows\[1\] is {row}; expected 0 to 3"):
        ops._native.scatter_rows(packed.data_ptr(), 10, planes.table, 4, rows, 1)
    with pytest.raises(IndexError, match=rf"rows\[1\] is {row}; expected 0 to 3"):
        ops._native.gather_rows(planes.table, 4, rows, packed.data_ptr(), 10, 1)
    assert (packed == 2).all()
    assert (planes.tensors[0] == 1).all()


@NATIVE
def test_kernels_themselves_refuse_a_size_that_does_not_fit():
    planes = ops.Planes(byte_planes(5))
    with pytest.raises(RuntimeError, match=r"gather_scatter\.cpp:\d+: .*11 bytes for 2 rows of 5"):
        ops._native.gather_rows(planes.table, 4, torch.tensor([0, 1]).numpy(), OUT.data_ptr(), 11, 1)
