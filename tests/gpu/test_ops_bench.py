# SPDX-License-Identifier: Apache-2.0
"""How fast rows are packed in device memory, beside a device copy of as many bytes: `pytest -m bench tests/gpu`.

Rates count what is read and what is written.
"""

import pytest

pytest.importorskip("torch")

import torch

from vllm_epd import ops

pytestmark = pytest.mark.bench

NEEDS = ("cupy",)
CUDA = torch.device("cuda", 0)
ROUNDS = 20
LEAST_OF_COPY = 0.8
SHAPES = [(56, 2 << 10, 4096), (56, 16 << 10, 1024), (56, 64 << 10, 256)]


def best_time(action):
    """Seconds on the device of the fastest round."""
    best = float("inf")
    for _ in range(ROUNDS):
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        action()
        end.record()
        end.synchronize()
        best = min(best, begin.elapsed_time(end) / 1000)
    return best


@pytest.mark.parametrize("way", ["gather", "scatter"])
@pytest.mark.parametrize(("count", "width", "num_rows"), SHAPES)
def test_copies_reach_a_device_copy(benchmark, count, width, num_rows, way):
    assert ops.implementation(CUDA) == "cuda"
    planes = ops.Planes([torch.ones(2 * num_rows, width, dtype=torch.uint8, device=CUDA) for _ in range(count)])
    rows = torch.randperm(2 * num_rows)[:num_rows]
    packed, other = torch.ones(2, num_rows * planes.row_bytes, dtype=torch.uint8, device=CUDA)
    copy = {
        "gather": lambda: ops.gather_rows(planes, rows, packed),
        "scatter": lambda: ops.scatter_rows(packed, planes, rows),
    }[way]
    copy()
    best, plain = best_time(copy), best_time(lambda: other.copy_(packed))
    benchmark.extra_info |= {
        "of_device_copy": round(plain / best, 2),
        "gb_per_s": round(2 * packed.numel() / best / 1e9),
    }
    benchmark.pedantic(copy, rounds=5)
    assert plain / best >= LEAST_OF_COPY


@pytest.mark.parametrize("codec", ops.CODECS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("way", ["quantize", "dequantize"])
def test_codecs(benchmark, way, dtype, codec):
    numbers = torch.randn(16384, 3584, device=CUDA).to(dtype)
    codes = torch.empty(numbers.shape, dtype=ops.CODECS[codec].dtype, device=CUDA)
    scales = torch.empty(len(numbers), device=CUDA)
    ops.quantize_rows(numbers, codes, scales, codec=codec)
    action = {
        "quantize": lambda: ops.quantize_rows(numbers, codes, scales, codec=codec),
        "dequantize": lambda: ops.dequantize_rows(codes, scales, numbers, codec=codec),
    }[way]
    other = torch.empty_like(numbers)
    best, plain = best_time(action), best_time(lambda: other.copy_(numbers))
    moved = numbers.numel() * (numbers.element_size() + 1)
    benchmark.extra_info |= {"of_device_copy": round(plain / best, 2), "gb_per_s": round(moved / best / 1e9)}
    benchmark.pedantic(action, rounds=5)
    assert best < 10 * plain
