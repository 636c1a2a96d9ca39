# SPDX-License-Identifier: Apache-2.0
"""The memory of an agent is there before it is used, and no more of it than that."""

import os
import time

import pytest

pytest.importorskip("torch")

from vllm_epd.transfer import warming
from vllm_epd.transfer.items import Claim
from vllm_epd.transfer.region import host_region
from vllm_epd.transfer.store import EmbeddingStore

MB = 2**20
AHEAD_BYTES = 32 * MB
PAGE = 64 * 2**10


def there(region):
    """Bytes that the kernel has provided."""
    return os.fstat(region.fd).st_blocks * 512


def until_there(region, nbytes):
    deadline = time.monotonic() + 20
    while there(region) < nbytes:
        assert time.monotonic() < deadline, f"{there(region)} of {nbytes} bytes are there"
        time.sleep(0.005)


@pytest.fixture(autouse=True)
def _less_ahead(monkeypatch):
    monkeypatch.setattr(warming, "AHEAD_BYTES", AHEAD_BYTES)


@pytest.fixture
def region():
    made = host_region(4 * AHEAD_BYTES)
    yield made
    made.close()


def test_some_of_it_is_there_from_the_start_and_not_all(region):
    until_there(region, AHEAD_BYTES)
    time.sleep(0.1)
    assert there(region) == AHEAD_BYTES


def test_it_keeps_ahead_of_what_is_used(region):
    region.reach(MB)
    region.reach(10 * MB)
    region.reach(5 * MB)
    until_there(region, AHEAD_BYTES + 10 * MB)
    time.sleep(0.1)
    assert there(region) == AHEAD_BYTES + 10 * MB


def test_it_ends_where_the_region_does(region):
    region.reach(region.nbytes)
    until_there(region, region.nbytes)


def test_a_store_tells_what_it_gives_out(region):
    store = EmbeddingStore(region, PAGE)
    for number in range(3):
        store.claim([Claim(f"item {number}", AHEAD_BYTES // 2, f"pin {number}")])
    until_there(region, 5 * AHEAD_BYTES // 2)


@pytest.mark.parametrize("pause_s", [0.0, 0.001, 0.01])
def test_it_can_be_closed_meanwhile(pause_s):
    for _ in range(5):
        made = host_region(4 * AHEAD_BYTES)
        made.reach(made.nbytes)
        time.sleep(pause_s)
        made.close()


def test_a_region_smaller_than_what_is_kept_ahead():
    made = host_region(5000)
    until_there(made, 5000)
    made.reach(5000)
    made.close()
