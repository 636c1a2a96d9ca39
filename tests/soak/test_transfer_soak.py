# SPDX-License-Identifier: Apache-2.0
"""Thousands of transfers among processes that are killed, lose words and repeat themselves."""

import os
import random
import statistics
import time

import pytest

pytest.importorskip("torch")
pytest.importorskip("nixl")

import zmq  # noqa: E402

from tests.soak.fleet import Fleet, MachineTraces  # noqa: E402
from tests.soak.traffic import LEASE_S, Traffic  # noqa: E402
from tests.unit.transfer.parties import wait_until  # noqa: E402

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]

TRANSFERS = 5_000
KILLS = 15
WARM_UP = 0.3
GROWTH_BYTES = 8 << 20
ONCE_OPENED = 3
"""Descriptors that ZeroMQ and UCX open with the first use and keep; far fewer than there are kills."""
SEED = 20240229


@pytest.fixture
def context():
    context = zmq.Context()
    yield context
    context.destroy(linger=0)


@pytest.mark.parametrize("lasting_transport", ["shm", "nixl"])
def test_nothing_is_lost_wrong_or_left_behind(context, lasting_transport):
    seed = SEED
    print(f"seed {seed}")  # noqa: T201
    chance = random.Random(seed)
    traces = MachineTraces()
    fleet = Fleet(context, chance, lasting_transport)
    own_descriptors = _descriptors()
    fleet.introduce()
    at_start = {slot: slot.worker.do("vitals") for slot in fleet.slots if not slot.mortal}
    traffic = Traffic(fleet, chance)
    memory = _work(fleet, traffic, chance)
    _finish(fleet, traffic)

    print(dict(traffic.outcomes))  # noqa: T201
    assert traffic.wrong == []
    assert traffic.broken_promises == []
    assert traffic.outcomes["delivered"] > 0.7 * TRANSFERS
    assert traffic.outcomes["failed"] > 0
    assert traffic.outcomes["dropped"] > 0
    _check_all_is_given_back(fleet)
    _check_all_is_closed(fleet, at_start)
    _check_memory(memory)
    wait_until(lambda: _descriptors() <= own_descriptors + ONCE_OPENED)
    fleet.stop()
    wait_until(lambda: not traces.left())


def _work(fleet, traffic, chance):
    """Private memory of each lasting process over time."""
    memory = {slot: [] for slot in fleet.slots if not slot.mortal}
    kills = [TRANSFERS * (number + 1) // (KILLS + 1) for number in range(KILLS)]
    starting = set()
    deadline = time.monotonic() + 300
    while traffic.ended < TRANSFERS:
        assert time.monotonic() < deadline, f"only {traffic.outcomes} in time"
        traffic.step()
        if kills and traffic.ended >= kills[0] and not starting:
            kills.pop(0)
            starting.add(_replace(chance.choice([slot for slot in fleet.slots if slot.mortal]), fleet, traffic, chance))
        ready = {slot for slot in starting if slot.is_ready}
        if ready:
            starting -= ready
            fleet.introduce()
        for slot, samples in memory.items():
            samples.append(slot.worker.private_bytes())
    assert not kills
    wait_until(lambda: all(slot.is_ready for slot in fleet.slots))
    fleet.introduce()
    return memory


def _replace(slot, fleet, traffic, chance):
    slot.worker.kill()
    traffic.bury(slot.worker)
    slot.start()
    if chance.random() < 0.5:
        fleet.introduce()
    return slot


def _finish(fleet, traffic):
    """Every pull of a living consumer ends in a report."""
    for slot in fleet.consumers:
        book = traffic.books[slot.worker]
        wait_until(lambda slot=slot, book=book: traffic.settle(slot.worker) or not book.open)


def _check_all_is_given_back(fleet):
    for slot in fleet.slots:
        wait_until(lambda slot=slot: slot.worker.do("state").pinned == 0, limit_s=LEASE_S + 10)
        assert slot.worker.do("whole_pool_is_free")


def _check_all_is_closed(fleet, at_start):
    fleet.part()
    for slot, vitals in at_start.items():
        wait_until(
            lambda slot=slot, vitals=vitals: slot.worker.do("vitals").descriptors <= vitals.descriptors + ONCE_OPENED
        )
        wait_until(lambda slot=slot: slot.worker.do("vitals").peer_mappings == 0)


def _check_memory(memory):
    for slot, samples in memory.items():
        warm = samples[int(len(samples) * WARM_UP) :]
        third = len(warm) // 3
        grown = statistics.median(warm[-third:]) - statistics.median(warm[:third])
        print(f"{slot.worker.epoch}: {grown / 1024:.0f} KiB")  # noqa: T201
        assert grown < GROWTH_BYTES


def _descriptors():
    return len(os.listdir("/proc/self/fd"))
