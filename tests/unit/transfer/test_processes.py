# SPDX-License-Identifier: Apache-2.0
"""Two agents in two processes: bytes arrive, and the death of one is news to the other, no more."""

import os
import signal

import pytest

pytest.importorskip("torch")
pytest.importorskip("nixl")

import zmq  # noqa: E402

from tests.unit.transfer.parties import wait_until  # noqa: E402
from tests.unit.transfer.worker import Worker  # noqa: E402
from vllm_epd.transfer import wire  # noqa: E402

TRANSPORTS = pytest.mark.parametrize("transport", ["shm", "nixl"])


@pytest.fixture
def start():
    context, workers = zmq.Context(), []

    def start(**changes):
        workers.append(Worker(context, **changes))
        return workers[-1]

    yield start
    for worker in workers:
        if not worker.orders.closed:
            worker.stop()
    context.destroy(linger=0)


def pull(consumer, handle, number):
    consumer.tell(wire.Pull(number, handle))
    return consumer.report()


def meet(consumer, *producers):
    consumer.tell(wire.SetPeers({each.epoch: [each.config.listen] for each in producers}))


@TRANSPORTS
def test_bytes_arrive_and_everything_is_given_back(start, transport):
    producer, consumer = start(transport=transport), start(transport=transport)
    for worker in (producer, consumer):
        worker.wait_ready()
    meet(consumer, producer)
    items = [(f"k{nbytes}", nbytes, 60.0) for nbytes in (1, 4096, 4097, 100_000)]
    assert producer.do("offer", items) == items
    for number, (key, nbytes, _) in enumerate(items):
        assert pull(consumer, producer.handle(key, nbytes), number) == wire.Pulled(number)
        assert consumer.do("check", [(number, key, nbytes)]) == []
        consumer.tell(wire.Drop(number, 1), wire.Release(producer.handle(key, nbytes)))
    assert "not held" in pull(consumer, producer.handle("nope", 10), 99).reason
    wait_until(lambda: producer.do("state").pinned == consumer.do("state").pinned == 0)
    assert producer.do("whole_pool_is_free")
    assert consumer.do("whole_pool_is_free")


@TRANSPORTS
def test_a_killed_producer_is_replaced_by_another_at_its_address(start, transport):
    producer = start(transport=transport).wait_ready()
    consumer = start(transport=transport, timeout_s=20.0).wait_ready()
    meet(consumer, producer)
    producer.do("offer", [("a", 5000, 60.0), ("b", 5000, 60.0)])
    assert pull(consumer, producer.handle("a", 5000), 1) == wire.Pulled(1)
    producer.kill()
    heir = start(transport=transport, listen=producer.config.listen).wait_ready()
    assert f"was restarted as {heir.epoch}" in pull(consumer, producer.handle("b", 5000), 2).reason
    assert consumer.do("check", [(1, "a", 5000)]) == []
    meet(consumer, heir)
    heir.do("offer", [("c", 5000, 60.0)])
    assert pull(consumer, heir.handle("c", 5000), 3) == wire.Pulled(3)
    assert consumer.do("check", [(3, "c", 5000)]) == []


@TRANSPORTS
def test_who_waits_for_a_producer_learns_of_its_death_at_once(start, transport):
    producer = start(transport=transport).wait_ready()
    consumer = start(transport=transport, timeout_s=60.0).wait_ready()
    meet(consumer, producer)
    producer.do("offer", [("a", 5000, 60.0)])
    assert pull(consumer, producer.handle("a", 5000), 1) == wire.Pulled(1)
    os.kill(producer.process.pid, signal.SIGSTOP)
    consumer.tell(wire.Pull(2, producer.handle("b", 5000)))
    assert not consumer.orders.poll(500), "the producer has answered"
    producer.kill()
    failed = consumer.report(limit_s=5)
    assert (failed.landing, "is gone" in failed.reason) == (2, True)
    assert "is gone" in pull(consumer, producer.handle("c", 5000), 3).reason


@TRANSPORTS
def test_what_a_killed_consumer_held_runs_out(start, transport):
    producer = start(transport=transport, timeout_s=0.3).wait_ready()
    consumer = start(transport=transport).wait_ready()
    meet(consumer, producer)
    producer.do("offer", [("a", 5000, 0.3)])
    assert pull(consumer, producer.handle("a", 5000), 1) == wire.Pulled(1)
    consumer.kill()
    wait_until(lambda: producer.do("state").pinned == 0)
    assert producer.do("whole_pool_is_free")


@TRANSPORTS
def test_a_killed_producer_leaves_nothing_open(start, transport):
    consumer = start(transport=transport).wait_ready()

    def live_and_die(number):
        producer = start(transport=transport).wait_ready()
        meet(consumer, producer)
        producer.do("offer", [(f"k{number}", 5000, 60.0)])
        assert pull(consumer, producer.handle(f"k{number}", 5000), number) == wire.Pulled(number)
        open_now = consumer.do("vitals")
        producer.kill()
        meet(consumer)
        wait_until(lambda: consumer.do("vitals").descriptors < open_now.descriptors)
        wait_until(lambda: consumer.do("vitals").peer_mappings == 0)
        return open_now

    assert live_and_die(1) == live_and_die(2) == live_and_die(3)
