# SPDX-License-Identifier: Apache-2.0
"""What the operations on rows are tried on, on whatever device, and the checks that hold there."""

from dataclasses import dataclass

import hypothesis.strategies as st
import torch

from vllm_epd import ops

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
_BITS = {torch.float32: torch.int32, torch.float16: torch.int16, torch.bfloat16: torch.int16}


@dataclass(frozen=True, slots=True)
class Layout:
    """A matrix of rows in a buffer: what precedes it, and what lies between its rows, in elements."""

    width: int
    gap: int = 0
    before: int = 0

    def view(self, buffer, num_rows):
        return buffer.as_strided((num_rows, self.width), (self.width + self.gap, 1), self.before)

    def size(self, num_rows):
        return self.before + num_rows * (self.width + self.gap)


@dataclass(frozen=True, slots=True)
class Copy:
    """Some rows of planes."""

    layouts: tuple[Layout, ...]
    num_rows: int
    rows: tuple[int, ...]
    seed: int = 0
    packed_before: int = 0

    def planes(self, device):
        """The planes, and the buffers that they are views of."""
        random = torch.Generator().manual_seed(self.seed)
        buffers = [
            torch.randint(256, (layout.size(self.num_rows),), dtype=torch.uint8, generator=random).to(device)
            for layout in self.layouts
        ]
        return [
            layout.view(buffer, self.num_rows) for layout, buffer in zip(self.layouts, buffers, strict=True)
        ], buffers

    def packed(self, device):
        """Packed rows, and the buffer that they are a view of."""
        random = torch.Generator().manual_seed(self.seed + 1)
        nbytes = len(self.rows) * sum(layout.width for layout in self.layouts)
        buffer = torch.randint(256, (self.packed_before + nbytes,), dtype=torch.uint8, generator=random).to(device)
        return buffer[self.packed_before :], buffer


@st.composite
def copies(draw, *, unique):
    num_rows = draw(st.integers(0, 6))
    widths = st.one_of(st.integers(0, 70), st.sampled_from([16, 64, 256, 1024, 1040]))
    gaps = st.one_of(st.integers(0, 20), st.sampled_from([16, 64]))
    layouts = draw(st.lists(st.builds(Layout, widths, gaps, st.integers(0, 17)), min_size=1, max_size=5))
    rows = st.lists(st.integers(0, num_rows - 1), unique=unique, max_size=9) if num_rows else st.just([])
    return Copy(tuple(layouts), num_rows, tuple(draw(rows)), draw(st.integers(0, 2**16)), draw(st.integers(0, 17)))


# Pieces that are copied side by side, of more than what caches keep and of less: longer and shorter than the steps of
# that, aligned and not.
LARGE = tuple(
    Copy(
        tuple(Layout(width, gap=width % 7, before=i % 3 * 16) for i, width in enumerate(widths)),
        num_rows=count + 20,
        rows=tuple(reversed(range(10, 10 + count))),
        packed_before=before,
    )
    for widths in ([2048] * 56, [16384] * 7, [65536, 256, 255, 4096, 4100, 100, 16, 65536, 9000, 8192, 30000])
    for count in (5, 130)
    for before in (0, 3)
)


def check_gather(case, device):
    planes, buffers = case.planes(device)
    out, buffer = case.packed(device)
    kept = [buffer[: case.packed_before].clone(), *(given.clone() for given in buffers)]
    ops.gather_rows(planes, list(case.rows), out)
    expected = torch.empty_like(out)
    ops.reference_gather_rows(planes, torch.tensor(case.rows, dtype=torch.int64, device=device), expected)
    assert torch.equal(out, expected)
    for now, then in zip([buffer[: case.packed_before], *buffers], kept, strict=True):
        assert torch.equal(now, then)


def check_scatter(case, device):
    planes, buffers = case.planes(device)
    expected, expected_buffers = case.planes(device)
    source, _ = case.packed(device)
    given = source.clone()
    ops.scatter_rows(source, planes, torch.tensor(case.rows, dtype=torch.int64))
    ops.reference_scatter_rows(given, expected, torch.tensor(case.rows, dtype=torch.int64, device=device))
    assert torch.equal(source, given)
    # Not only the planes: what lies between their rows is as it was.
    for buffer, wanted in zip(buffers, expected_buffers, strict=True):
        assert torch.equal(buffer, wanted)


@dataclass(frozen=True, slots=True)
class Coding:
    """Some rows of numbers to code."""

    layout: Layout
    num_rows: int
    rows: tuple[int, ...] | None
    dtype: torch.dtype
    codec: str
    seed: int
    codes_before: int = 0

    @property
    def count(self):
        return self.num_rows if self.rows is None else len(self.rows)

    def matrix(self, device):
        """Rows of all kinds: usual numbers, any bits at all, zeros, and numbers of any one magnitude."""
        random = torch.Generator().manual_seed(self.seed)
        buffer = torch.randn(self.layout.size(self.num_rows), generator=random).to(self.dtype)
        matrix = self.layout.view(buffer, self.num_rows)
        for row in matrix:
            kind = int(torch.randint(4, (), generator=random))
            if kind == 1:
                row.copy_(any_bits(row.numel(), self.dtype, random))
            elif kind == 2:
                row.zero_()
            elif kind == 3:
                row.mul_(2.0 ** int(torch.randint(-150, 127, (), generator=random)))
        buffer = buffer.to(device)
        return self.layout.view(buffer, self.num_rows), buffer

    def coded(self, device):
        """Codes and scales to be written, full of what must not stay."""
        codes = torch.full((self.codes_before + self.count * self.layout.width,), 77, dtype=torch.int8, device=device)
        codes = codes[self.codes_before :].view(ops.CODECS[self.codec].dtype).view(self.count, self.layout.width)
        return codes, torch.full((self.count,), -7.0, device=device)

    def row_tensor(self, device):
        return None if self.rows is None else torch.tensor(self.rows, dtype=torch.int64, device=device)


@st.composite
def codings(draw, *, unique):
    num_rows = draw(st.integers(0, 6))
    widths = st.one_of(st.integers(0, 40), st.sampled_from([64, 128, 1280]))
    layout = Layout(draw(widths), draw(st.integers(0, 9)), draw(st.integers(0, 5)))
    rows = None
    if draw(st.booleans()):
        rows = tuple(draw(st.lists(st.integers(0, num_rows - 1), unique=unique, max_size=9))) if num_rows else ()
    dtype, codec = draw(st.sampled_from(DTYPES)), draw(st.sampled_from(list(ops.CODECS)))
    return Coding(layout, num_rows, rows, dtype, codec, draw(st.integers(0, 2**16)), draw(st.integers(0, 9)))


def any_bits(count, dtype, random):
    """Numbers of which NaN, infinities and subnormal ones are a part."""
    bits = _BITS[dtype]
    limits = torch.iinfo(bits)
    return torch.randint(limits.min, limits.max + 1, (count,), generator=random, dtype=torch.int64).to(bits).view(dtype)


def check_quantize(case, device):
    matrix, buffer = case.matrix(device)
    kept = buffer.clone()
    codes, scales = case.coded(device)
    expected_codes, expected_scales = case.coded(device)
    ops.quantize_rows(matrix, codes, scales, codec=case.codec, rows=case.rows)
    ops.reference_quantize_rows(matrix, expected_codes, expected_scales, codec=case.codec, rows=case.row_tensor(device))
    assert_same_bits(codes, expected_codes)
    assert_same_bits(scales, expected_scales)
    assert_same_bits(buffer, kept)


def check_dequantize(case, device):
    """On any codes and any scales, also those that no row has."""
    random = torch.Generator().manual_seed(case.seed)
    codes, scales = case.coded("cpu")
    codes.view(torch.uint8).random_(0, 256, generator=random)
    scales.copy_(any_bits(len(scales), torch.float32, random))
    scales[::2] = scales[::2].abs().log2().nan_to_num(0, 0, 0)
    codes, scales = codes.to(device), scales.to(device)
    out, buffer = case.matrix(device)
    expected, expected_buffer = case.matrix(device)
    ops.dequantize_rows(codes, scales, out, codec=case.codec, rows=case.rows)
    ops.reference_dequantize_rows(codes, scales, expected, codec=case.codec, rows=case.row_tensor(device))
    assert_same_numbers(buffer, expected_buffer)


def assert_same_bits(got, expected):
    assert got.dtype == expected.dtype
    assert torch.equal(got.contiguous().view(torch.uint8), expected.contiguous().view(torch.uint8))


def assert_same_numbers(got, expected):
    """The same bits, but that NaN is NaN: which of them a multiplication gives is left to the device."""
    assert torch.equal(got.isnan(), expected.isnan())
    assert_same_bits(
        got.nan_to_num(nan=0, posinf=torch.inf, neginf=-torch.inf),
        expected.nan_to_num(nan=0, posinf=torch.inf, neginf=-torch.inf),
    )
