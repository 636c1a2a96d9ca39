# SPDX-License-Identifier: Apache-2.0
"""How fast rows are packed and coded in host memory, on one thread.

Run by `pytest -m bench tests/bench`. Copies of rows in random order are set beside a plain memcpy of as many
bytes, in turn with it, because the memory of a machine that others use is not the same from one second to the next:
what counts is the median of the ratios of neighbours.
"""

import ctypes
import time
from dataclasses import dataclass
from itertools import count, takewhile
from statistics import median

import pytest

pytest.importorskip("torch")

import torch

from vllm_epd import ops

pytestmark = pytest.mark.bench

SECONDS = 2.0
"""For each case: what others do on the same machine slows the one more than the other for up to half a second."""
WARM_UP = 2
LEAST_OF_MEMCPY = 0.8
COLD_BYTES = 256 << 20
"""More than a machine's caches hold: where a round moves on within so much, it finds nothing of it in a cache."""


@dataclass(frozen=True, slots=True)
class Shape:
    """Planes of a paged cache in host memory, how much of it is copied at once, and whether that is in a cache."""

    planes: int
    width: int
    rows: int
    cached: bool = False

    def __str__(self):
        return f"{self.planes}x{self.width >> 10}KiB-{self.rows}rows{'-cached' if self.cached else ''}"

    @property
    def nbytes(self):
        return self.planes * self.width * self.rows

    @property
    def places(self):
        """How many such copies touch different bytes."""
        return 1 if self.cached else max(2, COLD_BYTES // self.nbytes)


SHAPES = (
    Shape(56, 2 << 10, 256),
    Shape(56, 4 << 10, 256),
    Shape(56, 16 << 10, 256),
    Shape(56, 64 << 10, 64),
    Shape(56, 16 << 10, 4, cached=True),
)


@pytest.fixture(autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def times_in_turn(*actions):
    """Seconds of each round, one row for each of the actions; they are given the number of the round."""
    seconds = [[] for _ in actions]
    end = time.perf_counter() + SECONDS
    for number in takewhile(lambda _: time.perf_counter() < end, count(-WARM_UP)):
        for action, taken in zip(actions, seconds, strict=True):
            begin = time.perf_counter()
            action(number)
            taken.append(time.perf_counter() - begin)
    return [taken[WARM_UP:] for taken in seconds]


def median_ratio(seconds, others):
    """How many times as long as `seconds` the `others` have taken."""
    return median(other / second for second, other in zip(seconds, others, strict=True))


@pytest.mark.parametrize("way", ["gather", "scatter"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_copies_reach_memcpy(benchmark, shape, way):
    num_rows = shape.places * shape.rows
    tensors = [torch.ones(num_rows, shape.width, dtype=torch.uint8) for _ in range(shape.planes)]
    planes = ops.Planes(tensors)
    rows = [tuple(chosen.tolist()) for chosen in torch.randperm(num_rows).split(shape.rows)]
    packed, other = (torch.ones(shape.places, shape.nbytes, dtype=torch.uint8).unbind() for _ in range(2))

    def copy(number=0):
        place = number % shape.places
        if way == "gather":
            ops.gather_rows(planes, rows[place], packed[place])
        else:
            ops.scatter_rows(packed[place], planes, rows[place])

    def memcpy(number):
        place = number % shape.places
        ctypes.memmove(other[place].data_ptr(), packed[place - 1].data_ptr(), shape.nbytes)

    seconds, plain = times_in_turn(copy, memcpy)
    of_memcpy = median_ratio(seconds, plain)
    told = {"of_memcpy": of_memcpy, "gb_per_s": shape.nbytes / median(seconds) / 1e9}
    benchmark.extra_info |= {name: round(value, 2) for name, value in told.items()}
    benchmark.pedantic(copy, rounds=5)
    assert of_memcpy >= LEAST_OF_MEMCPY


@pytest.mark.parametrize("codec", ops.CODECS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("way", ["quantize", "dequantize"])
def test_codecs_outrun_their_references(benchmark, way, dtype, codec):
    numbers = torch.randn(2048, 3584).to(dtype)
    codes, scales = torch.empty(numbers.shape, dtype=ops.CODECS[codec].dtype), torch.empty(len(numbers))
    ops.quantize_rows(numbers, codes, scales, codec=codec)
    action, reference = {
        "quantize": (
            lambda _: ops.quantize_rows(numbers, codes, scales, codec=codec),
            lambda _: ops.reference_quantize_rows(numbers, codes, scales, codec=codec, rows=None),
        ),
        "dequantize": (
            lambda _: ops.dequantize_rows(codes, scales, numbers, codec=codec),
            lambda _: ops.reference_dequantize_rows(codes, scales, numbers, codec=codec, rows=None),
        ),
    }[way]
    seconds, in_torch = times_in_turn(action, reference)
    times_reference = median_ratio(seconds, in_torch)
    rate = numbers.numel() * numbers.element_size() / median(seconds) / 1e9
    benchmark.extra_info |= {"times_reference": round(times_reference, 1), "gb_per_s": round(rate, 1)}
    benchmark.pedantic(action, (0,), rounds=5)
    assert times_reference > 1
