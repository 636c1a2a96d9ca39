# SPDX-License-Identifier: Apache-2.0
"""Which tier an instance with a GPU chooses, and whole fetches between two such instances."""

import pytest

pytest.importorskip("torch")

import torch

from vllm_epd.doctor.examine import SIZES, Wanted, examine, examine_machine
from vllm_epd.doctor.producer import Offer, free_address, producer_process
from vllm_epd.errors import TransferError
from vllm_epd.transfer import tiers
from vllm_epd.transfer.tiers import TransferMemory, open_tiers

NEEDS = ("cupy", "nixl")
NBYTES = 16 << 20
MEMORY = TransferMemory(NBYTES, "cuda:0")


def test_device_memory_and_cuda_ipc_come_first():
    opened = open_tiers(MEMORY)
    assert opened.region.on_device
    assert opened.names[0] == "cuda_ipc"
    opened.close()


def test_without_device_memory_pools_are_page_locked_host_memory(monkeypatch):
    def refuse(nbytes, device):
        raise TransferError("no device memory today")

    monkeypatch.setattr(tiers, "_device_region", refuse)
    opened = open_tiers(MEMORY)
    assert not opened.region.on_device
    assert opened.region.tensor.is_pinned()
    assert opened.names[0] == "shm"
    opened.close()


def test_more_than_the_device_has_falls_back_to_host_memory(monkeypatch):
    total = torch.cuda.get_device_properties(0).total_memory
    device_region = tiers._device_region
    monkeypatch.setattr(tiers, "_device_region", lambda nbytes, device: device_region(2 * total, device))
    opened = open_tiers(MEMORY)
    assert not opened.region.on_device
    opened.close()


def test_shm_can_be_asked_for_beside_a_gpu():
    opened = open_tiers(TransferMemory(NBYTES, "cuda:0", "shm"))
    assert opened.names == ["shm"]
    assert opened.region.tensor.is_pinned()
    opened.close()


@pytest.mark.parametrize("transport", ["cuda_ipc", "nixl"])
def test_embeddings_move_between_the_device_memories_of_two_instances(transport):
    address, wanted = free_address(), Wanted(transport)
    with producer_process(Offer(address, SIZES, "cuda", transport)):
        finding = examine(address, "cuda", transport, wanted)
    assert finding.problem == ""
    assert finding.bytes_per_s > 0


def test_left_to_choose_two_instances_move_embeddings():
    diagnosis = examine_machine(Wanted())
    assert diagnosis.choice.problem == ""
    assert (diagnosis.chosen.tier, diagnosis.chosen.device) == ("cuda_ipc", "cuda")
