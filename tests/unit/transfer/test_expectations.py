# SPDX-License-Identifier: Apache-2.0
"""What is expected comes in as it is made; whoever asks for it by name finds it here or on its way."""

import time

import pytest

torch = pytest.importorskip("torch")

from tests.unit.transfer.parties import PAGE, Party, pattern, wait_until  # noqa: E402
from vllm_epd.transfer import wire  # noqa: E402

SIZE = 2 * PAGE
POOL = 16 * PAGE
TRANSFER = "t"


@pytest.fixture
def pair(make_party):
    producer, consumer = (make_party(pool_bytes=POOL, lease_s=3.0, timeout_s=2.0) for _ in range(2))
    consumer.meet(producer)
    return producer, consumer


def expect(consumer: Party, producer: Party, transfer=TRANSFER):
    consumer.tell(wire.Expect(transfer, producer.epoch, 0))


def plan(producer: Party, *keys, transfer=TRANSFER):
    """Room at the producer for chunks that it is about to make."""
    items = [wire.Wanted(number, key, f"{transfer}:{number}", SIZE) for number, key in enumerate(keys)]
    assert producer.ask(wire.Reserve(items, transfer)) == wire.Reserved(0, [], [SIZE] * len(keys))


def make(producer: Party, key):
    producer.store.put(key, pattern(key, SIZE))


def fetched(consumer: Party):
    return consumer.state().fetched


def pull(consumer: Party, producer: Party, key, number):
    assert consumer.pull(producer.handle(key, SIZE), number) == wire.Pulled(number)
    assert torch.equal(consumer.load(number, key), pattern(key, SIZE))
    consumer.tell(wire.Drop(number, 1))


def test_chunks_come_in_one_by_one_while_they_are_made(pair):
    producer, consumer = pair
    expect(consumer, producer)
    plan(producer, "a", "b", "c")
    for number, key in enumerate("abc"):
        assert fetched(consumer) == number
        make(producer, key)
        wait_until(lambda number=number: fetched(consumer) == number + 1)
    for number, key in enumerate("abc"):
        pull(consumer, producer, key, number)
    assert fetched(consumer) == 3


def test_the_next_one_is_asked_for_while_one_is_on_its_way(pair):
    producer, consumer = pair
    plan(producer, "a", "b", "c", "d")
    expect(consumer, producer)
    wait_until(lambda: consumer.state().pinned == 2)
    time.sleep(0.1)
    assert consumer.state().pinned == 2
    make(producer, "b")
    wait_until(lambda: consumer.state().pinned == 3)
    assert fetched(consumer) == 1
    for key in "acd":
        make(producer, key)
    wait_until(lambda: fetched(consumer) == 4)


def test_who_asks_before_a_chunk_is_made_gets_it_when_it_is(pair):
    producer, consumer = pair
    expect(consumer, producer)
    plan(producer, "a")
    wait_until(lambda: consumer.state().pinned == 1)
    consumer.tell(wire.Pull(7, producer.handle("a", SIZE)))
    assert not consumer.orders.poll(100)
    make(producer, "a")
    assert consumer.report() == wire.Pulled(7)
    assert fetched(consumer) == 1


def test_what_is_forgotten_is_let_go_of_and_stays_only_as_a_cache_entry(pair):
    producer, consumer = pair
    plan(producer, "a", "b")
    make(producer, "a")
    expect(consumer, producer)
    wait_until(lambda: fetched(consumer) == 1)
    consumer.tell(wire.Forget(TRANSFER))
    wait_until(lambda: consumer.state().pinned == 0)
    assert consumer.state().items == 1
    make(producer, "b")
    time.sleep(0.05)
    assert fetched(consumer) == 1


def test_a_grant_that_comes_too_late_is_given_back(make_party):
    """It would otherwise keep the item for as long as a read may take."""
    producer, consumer = (make_party(pool_bytes=POOL, lease_s=30.0, timeout_s=30.0) for _ in range(2))
    consumer.meet(producer)
    plan(producer, "a")
    expect(consumer, producer)
    wait_until(lambda: consumer.state().pinned == 1)
    time.sleep(0.1)
    consumer.tell(wire.Forget(TRANSFER))
    wait_until(lambda: consumer.state().pinned == 0)
    make(producer, "a")
    time.sleep(0.1)
    producer.tell(wire.Forget(TRANSFER))
    wait_until(lambda: producer.state().pinned == 0, limit_s=5)


def test_a_producer_lets_go_of_what_nobody_comes_for(pair):
    producer, _ = pair
    plan(producer, "a", "b")
    make(producer, "a")
    assert producer.state().pinned == 2
    producer.tell(wire.Forget(TRANSFER), wire.Forget("unheard of"))
    wait_until(lambda: producer.state().pinned == 0)
    assert producer.state().items == 1


def test_what_nobody_asks_for_is_let_go_of_after_a_lease(pair):
    producer, consumer = pair
    plan(producer, "a")
    make(producer, "a")
    expect(consumer, producer)
    wait_until(lambda: fetched(consumer) == 1)
    assert consumer.state().pinned == 1
    wait_until(lambda: consumer.state().pinned == 0, limit_s=5)


def test_expectations_leave_half_of_the_pool_to_those_who_ask(pair):
    producer, consumer = pair
    keys = "abcdefgh"
    plan(producer, *keys)
    for key in keys:
        make(producer, key)
    expect(consumer, producer)
    wait_until(lambda: fetched(consumer) == 4)
    time.sleep(0.05)
    assert fetched(consumer) == 4
    for number, key in enumerate(keys):
        pull(consumer, producer, key, number)


def test_an_unknown_transfer_and_an_unknown_producer_do_no_harm(pair, make_party):
    producer, consumer = pair
    expect(consumer, producer, "unheard of")
    expect(consumer, make_party(), "of a stranger's")
    plan(producer, "a")
    make(producer, "a")
    pull(consumer, producer, "a", 1)
    wait_until(lambda: consumer.state().pinned == 0)


def test_a_producer_that_dies_in_between_leaves_nothing_pinned(pair):
    producer, consumer = pair
    plan(producer, "a", "b")
    make(producer, "a")
    expect(consumer, producer)
    wait_until(lambda: fetched(consumer) == 1)
    producer.close()
    wait_until(lambda: consumer.state().pinned == 0, limit_s=5)


def test_what_is_here_already_is_not_fetched_again(pair):
    producer, consumer = pair
    plan(producer, "a")
    make(producer, "a")
    pull(consumer, producer, "a", 1)
    plan(producer, "b", transfer="u")
    expect(consumer, producer, "u")
    make(producer, "b")
    wait_until(lambda: fetched(consumer) == 2)
    consumer.tell(wire.Forget("u"))
    expect(consumer, producer, "u")
    pull(consumer, producer, "b", 2)
    assert fetched(consumer) == 2
