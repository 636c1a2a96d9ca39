# SPDX-License-Identifier: Apache-2.0
"""What comes back of an encoded item, how large it is, and how far off."""

import pytest

torch = pytest.importorskip("torch")

from hypothesis import given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402

from vllm_epd.config import INSTANCE_FLAGS  # noqa: E402
from vllm_epd.transfer.codec import (  # noqa: E402
    CODECS,
    DTYPES,
    NONE,
    decode,
    encode,
    encoded_bytes,
    item_bytes,
    row_errors,
    scales_of,
)
from vllm_epd.transfer.packing import CHECKS  # noqa: E402

ENCODING = [codec for codec in CODECS if codec != NONE]
STEP = {"int8": 0.5 / 127, "fp8": 0.5 / 8}
"""Largest error of a number: of the row's largest magnitude for int8, of the number itself for fp8."""
LEAST = {"int8": 0.0, "fp8": 2.0**-10 / 448}
"""Of the row's largest magnitude: half a step of fp8 where the steps shrink no more."""
ROUNDING = {torch.float16: 2.0**-11, torch.bfloat16: 2.0**-8, torch.float32: 2.0**-22}

codecs = pytest.mark.parametrize("codec", ENCODING)


@st.composite
def tensors(draw):
    """Of any dtype and shape, with rows of very different sizes."""
    shape = draw(st.lists(st.integers(0, 5), max_size=2)) + [draw(st.integers(0, 40))]
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**32)))
    size = 10.0 ** draw(st.integers(-3, 3))
    heavy = torch.randn(shape, generator=generator) ** draw(st.sampled_from([1, 3, 5]))
    kept = torch.rand(shape, generator=generator) < draw(st.sampled_from([0.1, 0.9, 1.0]))
    return (heavy * kept * size).clamp(-60000, 60000).to(draw(st.sampled_from(DTYPES)))


def there_and_back(tensor, codec):
    encoded = encode(tensor, codec)
    assert (encoded.dtype, encoded.shape) == (torch.uint8, (item_bytes(tensor.shape, tensor.dtype, codec),))
    return decode(encoded, tensor.shape, tensor.dtype, codec)


@codecs
@settings(deadline=None)
@given(tensor=tensors())
def test_numbers_come_back_within_a_step(codec, tensor):
    decoded = there_and_back(tensor, codec)
    assert (decoded.shape, decoded.dtype) == (tensor.shape, tensor.dtype)
    if not tensor.numel():
        return
    exact = tensor.double()
    largest = exact.abs().amax(-1, keepdim=True)
    step = STEP[codec] * (largest if codec == "int8" else exact.abs()) + LEAST[codec] * largest
    error = (decoded.double() - exact).abs()
    assert (error <= step * 1.001 + ROUNDING[tensor.dtype] * exact.abs() * 2 + 1e-7).all()


@codecs
@settings(deadline=None)
@given(tensor=tensors(), chosen=st.randoms(use_true_random=False))
def test_rows_of_zeros_are_exact_and_change_no_other_row(codec, tensor, chosen):
    rows = tensor.reshape(-1, tensor.shape[-1]) if tensor.numel() else tensor.new_ones(3, 4)
    zero = torch.tensor([chosen.random() < 0.5 for _ in rows])
    with_zeros = rows * ~zero[:, None]
    decoded = there_and_back(with_zeros, codec)
    assert torch.equal(decoded[zero], torch.zeros_like(rows[zero]))
    assert torch.equal(decoded[~zero], there_and_back(rows, codec)[~zero])


@codecs
@pytest.mark.parametrize("broken", [float("nan"), float("inf"), -float("inf")])
@settings(deadline=None, max_examples=30)
@given(tensor=tensors(), place=st.integers(0, 10**6))
def test_a_row_that_is_not_finite_never_becomes_so_and_spoils_no_other(codec, broken, tensor, place):
    tensor = tensor if tensor.numel() else torch.ones(2, 3)
    rows = tensor.reshape(-1, tensor.shape[-1]).clone()
    row = place % len(rows)
    sound = there_and_back(rows, codec)
    rows[row, place % rows.shape[1]] = broken
    decoded = there_and_back(rows, codec)
    assert not decoded[row].isfinite().any()
    others = torch.arange(len(rows)) != row
    assert torch.equal(decoded[others], sound[others])
    assert scales_of(encode(rows, codec), rows.shape).isfinite().tolist() == others.tolist()


@codecs
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(0, 8), (0,), (3, 0, 8)], ids=str)
def test_an_item_without_a_row_is_encoded_as_nothing(codec, dtype, shape):
    decoded = there_and_back(torch.empty(shape, dtype=dtype), codec)
    assert (decoded.shape, decoded.dtype) == (shape, dtype)
    assert row_errors(torch.empty(shape, dtype=dtype), decoded).numel() == (shape == (0,))


@codecs
def test_the_smallest_and_the_largest_numbers_stay_finite(codec):
    rows = torch.tensor([[1e-45, 0.0], [1e-38, -1e-38], [3e38, -3e38], [65504.0, 1e-30]])
    decoded = there_and_back(rows, codec)
    assert decoded.isfinite().all()
    assert torch.allclose(decoded[2:, 0], rows[2:, 0], rtol=1e-6)
    assert torch.equal(there_and_back(rows[2:].half().clamp(-65504, 65504), codec).isfinite().all(), torch.tensor(True))


@codecs
def test_a_view_that_is_not_contiguous_is_encoded_in_its_order(codec):
    tensor = torch.randn(6, 5).T
    assert torch.equal(there_and_back(tensor, codec), there_and_back(tensor.contiguous(), codec))


@codecs
def test_encoding_what_was_decoded_changes_nothing_more(codec):
    once = there_and_back(torch.randn(50, 64), codec)
    assert torch.allclose(there_and_back(once, codec), once, rtol=1e-6)


@codecs
@pytest.mark.parametrize(("dtype", "most"), [(torch.bfloat16, 0.501), (torch.float16, 0.501), (torch.float32, 0.2505)])
def test_an_encoded_item_has_half_or_a_quarter_of_the_bytes(codec, dtype, most):
    rows, width = 256, 3584
    assert encoded_bytes(rows, width, codec) == rows * width + 4 * rows
    assert encode(torch.randn(rows, width).to(dtype), codec).numel() == encoded_bytes(rows, width, codec)
    assert encoded_bytes(rows, width, codec) <= most * rows * width * dtype.itemsize


@pytest.mark.parametrize(
    ("shape", "dtype", "codec", "nbytes"),
    [
        ((2, 3), torch.int64, NONE, 48),
        ((), torch.uint8, NONE, 1),
        ((2, 3), torch.float32, "int8", 14),
        ((4, 2, 3), torch.bfloat16, "fp8", 56),
        ((3,), torch.float16, "fp8", 7),
        ((0, 3), torch.float32, "int8", 0),
        ((2, 0), torch.float32, "int8", 8),
        ((2, 3), torch.float64, "int8", None),
        ((2, 3), torch.uint8, "int8", None),
        ((), torch.float32, "int8", None),
        ((2, 3), torch.float32, "zip", None),
    ],
)
def test_the_size_of_an_item_follows_from_its_shape(shape, dtype, codec, nbytes):
    assert item_bytes(shape, dtype, codec) == nbytes


def test_errors_are_those_of_the_rows():
    exact = torch.tensor([[3.0, 4.0], [0.0, 0.0], [1e-30, 0.0], [0.0, 0.0], [float("inf"), 1.0]])
    found = torch.tensor([[3.0, 4.5], [0.0, 0.0], [2e-30, 0.0], [1.0, 0.0], [float("nan"), float("nan")]])
    errors = row_errors(exact, found)
    assert errors[:4].tolist() == pytest.approx([0.1, 0.0, 1.0, float("inf")])
    assert errors[4].isnan()


def test_a_codec_is_about_as_exact_as_the_guard_expects():
    rows = torch.randn(64, 4096, generator=torch.Generator().manual_seed(1))
    worst = {codec: float(row_errors(rows, there_and_back(rows, codec)).amax()) for codec in ENCODING}
    assert 0.007 < worst["int8"] < 0.013
    assert 0.02 < worst["fp8"] < 0.03


@pytest.mark.parametrize(("name", "choices"), [("embedding_codec", CODECS), ("embedding_check", CHECKS)])
def test_the_flags_offer_what_there_is(name, choices):
    (flag,) = [flag for flag in INSTANCE_FLAGS if flag.name == name]
    assert flag.choices == choices
    assert flag.default == "none"
