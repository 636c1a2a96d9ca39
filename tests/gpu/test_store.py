# SPDX-License-Identifier: Apache-2.0
"""Embeddings in a region of device memory, and in page-locked host memory beside a device."""

import pytest

pytest.importorskip("torch")

import torch

from vllm_epd.transfer.cuda_ipc import device_region
from vllm_epd.transfer.items import Claim, lease_pin
from vllm_epd.transfer.region import host_region
from vllm_epd.transfer.store import EmbeddingStore

NEEDS = ("cupy",)
PAGE = 64 << 10
REGION = 64 << 20
CUDA, CPU = torch.device("cuda", 0), torch.device("cpu")


@pytest.fixture(params=["device", "page-locked"])
def region(request, _needs):
    region = device_region(REGION, CUDA) if request.param == "device" else host_region(REGION, page_locked=True)
    yield region
    torch.cuda.synchronize()
    region.close()


@pytest.fixture
def store(region):
    return EmbeddingStore(region, PAGE)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("device", [CUDA, CPU], ids=str)
def test_what_is_put_is_taken_bit_for_bit(store, dtype, device):
    tensor = torch.randn(777, 1280).to(dtype)
    store.put("key", tensor.to(CUDA))
    taken = store.take("key", device)
    torch.cuda.synchronize()
    assert taken.device.type == device.type
    assert taken.dtype == dtype
    assert torch.equal(taken.cpu(), tensor)


def test_what_comes_from_host_memory_is_taken_bit_for_bit(store):
    tensor = torch.randn(777, 1280)
    store.put("key", tensor)
    assert torch.equal(store.take("key", CUDA).cpu(), tensor)


def test_an_item_is_ready_when_the_device_has_written_it(store):
    tensor = torch.ones(1024, 1024, device=CUDA)
    torch.cuda._sleep(int(2e8))
    store.put("key", tensor)
    item = store.grant("key", "grant", 60)
    assert not item.ready
    torch.cuda.synchronize()
    assert item.ready


def test_pages_are_kept_until_the_device_is_done_with_them(store):
    torch.cuda._sleep(int(2e8))
    store.put("key", torch.ones(1024, 1024, device=CUDA))
    assert store.state().pinned == 1
    assert store.claim([Claim("whole", REGION, lease_pin("whole"))]) is None
    torch.cuda.synchronize()
    assert store.state().pinned == 0
    assert store.claim([Claim("whole", REGION, lease_pin("whole"))]) is not None


def test_page_locked_memory_is_seen_as_such_and_can_be_locked_again():
    for _ in range(2):
        region = host_region(REGION, page_locked=True)
        assert region.tensor.is_pinned()
        region.close()
