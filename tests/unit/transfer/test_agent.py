# SPDX-License-Identifier: Apache-2.0
"""Whole agents over real sockets, shared memory and NIXL: what is offered arrives, what is foreign is refused."""

import logging
import os
import sys
import threading
from dataclasses import replace

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("nixl")

from tests.unit.transfer.parties import (  # noqa: E402
    CPU,
    FINGERPRINT,
    PAGE,
    Party,
    config,
    pattern,
    wait_until,
)
from vllm_epd.errors import EmbeddingLostError, PeerError, TransferError  # noqa: E402
from vllm_epd.transfer import serve, tiers, wire  # noqa: E402
from vllm_epd.transfer.agent import TransferAgent  # noqa: E402
from vllm_epd.transfer.items import Claim  # noqa: E402
from vllm_epd.transfer.nixl import NixlTransport  # noqa: E402
from vllm_epd.transfer.shm import ShmTransport  # noqa: E402

TRANSPORTS = pytest.mark.parametrize("transport", ["shm", "nixl"])


def pair(make_party, **changes):
    producer, consumer = make_party(**changes), make_party(**changes)
    consumer.meet(producer)
    return producer, consumer


def at_rest(party, items=0):
    state = party.state()
    return state.pinned == 0 and (items or state.free_bytes == state.capacity_bytes)


@TRANSPORTS
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.uint8])
def test_what_is_offered_arrives_bit_for_bit(make_party, transport, dtype):
    producer, consumer = pair(make_party, transport=transport)
    tensors = {f"k{rows}": (torch.randn(rows, 33) * 50).to(dtype) for rows in (1, 7, 500)} | {
        "scalar": torch.ones((), dtype=dtype)
    }
    for number, (key, tensor) in enumerate(tensors.items()):
        handle = producer.offer(key, tensor)
        assert consumer.pull(handle, number) == wire.Pulled(number)
        landed = consumer.load(number, key)
        assert landed.dtype == dtype
        assert torch.equal(landed, tensor)
        consumer.tell(wire.Drop(number, 1), wire.Release(handle))
    wait_until(lambda: at_rest(producer, items=4) and at_rest(consumer, items=4))
    assert consumer.state().fetched == 4
    assert consumer.state().tiers == [transport]


@TRANSPORTS
def test_an_item_larger_than_one_step_of_a_copy_arrives(make_party, transport):
    producer, consumer = pair(make_party, transport=transport, pool_bytes=40 << 20)
    tensor = pattern("large", 33 << 20)
    assert consumer.pull(producer.offer("large", tensor)) == wire.Pulled(0)
    assert torch.equal(consumer.load(0, "large"), tensor)


@TRANSPORTS
def test_an_item_in_scattered_pages_arrives(make_party, transport):
    producer, consumer = pair(make_party, transport=transport, pool_bytes=8 * PAGE)
    for party in (producer, consumer):
        for number in range(8):
            party.store.claim([Claim(f"f{number}", PAGE, f"pin-{number}")])
        for number in range(0, 8, 2):
            party.store.release(f"pin-{number}")
    tensor = pattern("k", 4 * PAGE - 7)
    assert consumer.pull(producer.offer("k", tensor)) == wire.Pulled(0)
    assert torch.equal(consumer.load(0, "k"), tensor)


def test_what_is_here_already_is_not_fetched_again(make_party):
    producer, consumer = pair(make_party)
    handle = producer.offer("k", pattern("k", 5000))
    assert consumer.pull(handle, 1) == wire.Pulled(1)
    assert consumer.pull(handle, 2) == wire.Pulled(2)
    state = consumer.state()
    assert (state.fetched, state.hits) == (1, 1)


@TRANSPORTS
def test_what_is_not_held_is_lost(make_party, transport):
    producer, consumer = pair(make_party, transport=transport)
    report = consumer.pull(producer.handle("nope", 100))
    assert "'nope' is not held" in report.reason
    assert at_rest(consumer)


def test_what_is_reserved_and_not_encoded_yet_is_lost(make_party):
    producer, consumer = pair(make_party)
    producer.store.claim([Claim("k", 100, "lease-k", 60.0)])
    assert "'k' is not held" in consumer.pull(producer.handle("k", 100)).reason


def test_a_handle_of_another_size_is_refused(make_party):
    producer, consumer = pair(make_party)
    producer.offer("k", pattern("k", 5000))
    report = consumer.pull(producer.handle("k", 4999))
    assert "4999 bytes was announced, 5000 are offered" in report.reason
    wait_until(lambda: at_rest(consumer))
    producer.store.end_lease("k")
    wait_until(lambda: producer.state().pinned == 0)


def test_an_acknowledged_lease_frees_the_item_and_a_second_one_changes_nothing(make_party):
    producer, consumer = pair(make_party)
    handle = producer.offer("k", pattern("k", 100))
    assert producer.state().pinned == 1
    consumer.tell(wire.Release(handle), wire.Release(handle))
    wait_until(lambda: producer.state().pinned == 0)
    assert producer.state().items == 1


@TRANSPORTS
def test_a_producer_restarted_at_its_address_is_another_one(make_party, transport):
    producer, consumer = pair(make_party, transport=transport)
    handle = producer.offer("k", pattern("k", 100))
    assert consumer.pull(handle, 1) == wire.Pulled(1)
    producer.close()
    restarted = make_party(transport=transport, listen=producer.config.listen)
    old = consumer.pull(producer.handle("other", 100), 2)
    assert f"was restarted as {restarted.epoch}" in old.reason
    consumer.meet(restarted)
    assert consumer.pull(restarted.offer("new", pattern("new", 100)), 3) == wire.Pulled(3)
    assert torch.equal(consumer.load(3, "new"), pattern("new", 100))


def test_a_consumer_that_was_pushed_out_is_let_in_again_without_noticing(make_party, monkeypatch):
    monkeypatch.setattr(serve, "MAX_PEERS", 1)
    producer, one, two = make_party(), make_party(), make_party()
    for consumer in (one, two):
        consumer.meet(producer)
    for number in range(6):
        handle = producer.offer(f"k{number}", pattern(f"k{number}", 100))
        for consumer in (one, two):
            assert consumer.pull(handle, number) == wire.Pulled(number)
            assert torch.equal(consumer.load(number, handle.key), pattern(handle.key, 100))
    assert producer.state().refused >= 10


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"secret": b"other"}, "the producer has another shared secret"),
        ({"fingerprint": replace(FINGERPRINT, weights="other")}, "weights: w != other"),
        ({"transport": "nixl"}, "no transport in common: ['nixl'] there, ['shm'] here"),
    ],
)
def test_a_stranger_is_refused_and_told_why(make_party, changes, reason):
    producer, stranger = make_party(), make_party(**changes)
    stranger.meet(producer)
    handle = producer.offer("k", pattern("k", 100))
    assert reason in stranger.pull(handle).reason
    assert at_rest(stranger)


def test_those_who_were_refused_are_counted(make_party):
    producer, stranger = make_party(), make_party(fingerprint=replace(FINGERPRINT, weights="other"))
    stranger.meet(producer)
    stranger.pull(producer.handle("k", 100))
    assert producer.state().refused == 1


def test_an_item_larger_than_the_pool_fails_at_once(make_party):
    producer, consumer = pair(make_party)
    nbytes = (1 << 20) + 1
    assert "do not fit a pool of 1048576 bytes" in consumer.pull(producer.handle("k", nbytes)).reason
    reply = producer.ask(wire.Reserve([wire.Wanted(1, "k", "l", nbytes)]))
    assert "do not fit a pool of 1048576 bytes" in reply.reason


def test_a_full_pool_waits_and_goes_on_when_its_consumer_acknowledges(make_party):
    producer, consumer = pair(make_party, pool_bytes=4 * PAGE)
    handle = producer.offer("k", pattern("k", 4 * PAGE))
    producer.tell(wire.Reserve([wire.Wanted(7, "next", "next", PAGE)]), wire.AskPool())
    assert isinstance(producer.report(), wire.PoolState), "the pool is full, so there is no answer yet"
    consumer.tell(wire.Release(handle))
    assert producer.report() == wire.Reserved(7, [], [PAGE])


def test_a_consumer_without_room_waits_for_a_drop(make_party):
    producer, consumer = pair(make_party, pool_bytes=4 * PAGE)
    one, two = producer.offer("one", pattern("one", 2 * PAGE)), producer.offer("two", pattern("two", 2 * PAGE))
    assert consumer.pull(one, 1) == wire.Pulled(1)
    consumer.store.claim([Claim("mine", 2 * PAGE, "mine")])
    consumer.tell(wire.Pull(2, two), wire.AskPool())
    assert isinstance(consumer.report(), wire.PoolState)
    consumer.tell(wire.Drop(1, 0))
    assert consumer.report() == wire.Pulled(2)
    assert torch.equal(consumer.load(2, "two"), pattern("two", 2 * PAGE))


def test_a_wait_for_room_ends_with_its_time_limit(make_party):
    producer, consumer = pair(make_party, pool_bytes=4 * PAGE, timeout_s=0.2)
    for party in (producer, consumer):
        party.store.claim([Claim("mine", 4 * PAGE, "mine")])
    assert "no room in the pool" in producer.ask(wire.Reserve([wire.Wanted(1, "k", "l", PAGE)])).reason
    assert "not here within" in consumer.pull(producer.handle("k", PAGE)).reason
    for party in (producer, consumer):
        party.store.release("mine")
        assert at_rest(party)


def test_a_producer_that_is_not_there_fails_the_pull_at_once(make_party):
    consumer = make_party(timeout_s=60.0)
    consumer.tell(wire.SetPeers({"e": ["tcp://127.0.0.1:9"]}))
    report = consumer.pull(wire.EmbeddingHandle(wire.WIRE_VERSION, "k", "l", "e", 0, 100))
    assert "is gone" in report.reason
    assert at_rest(consumer)


@pytest.mark.parametrize("address", ["", "nowhere at all", "tcp://127.0.0.1", "tcp://no such host:1"])
def test_what_is_no_address_fails_the_pull_at_once(make_party, address):
    consumer = make_party()
    consumer.tell(wire.SetPeers({"e": [address]}))
    report = consumer.pull(wire.EmbeddingHandle(wire.WIRE_VERSION, "k", "l", "e", 0, 100))
    assert "no address" in report.reason


def test_a_pull_that_was_dropped_says_so(make_party):
    consumer = make_party()
    consumer.tell(wire.SetPeers({"e": ["tcp://127.0.0.1:9"]}))
    consumer.tell(wire.Pull(1, wire.EmbeddingHandle(wire.WIRE_VERSION, "k", "l", "e", 0, 100)), wire.Drop(1, 0))
    assert consumer.report() == wire.PullFailed(1, "dropped")
    assert at_rest(consumer)


@pytest.mark.parametrize("place", ["listen", "command"])
def test_an_address_in_use_is_an_error_at_start(make_party, place):
    taken = getattr(make_party().config, place)
    with pytest.raises(TransferError, match="cannot bind"):
        TransferAgent(config(**{place: taken}))


@TRANSPORTS
def test_a_transport_asked_for_by_name_that_cannot_start_says_why(monkeypatch, transport):
    monkeypatch.setattr(tiers, "MAKERS", {**tiers.MAKERS, transport: _cannot_start})
    with pytest.raises(TransferError, match=f"no transport starts \\({transport}: it is Tuesday"):
        TransferAgent(config(transport=transport))


def _cannot_start(memory):
    raise TransferError("it is Tuesday")


@pytest.mark.parametrize(
    ("transport", "reason"), [("carrier pigeon", "unknown transport"), ("cuda_ipc", "the model is on cpu")]
)
def test_a_transport_that_cannot_be_is_refused(transport, reason):
    with pytest.raises(TransferError, match=reason):
        TransferAgent(config(transport=transport))


def test_without_nixl_shared_memory_is_taken_with_a_warning(make_party, monkeypatch, caplog):
    monkeypatch.setitem(sys.modules, "nixl._api", None)
    with caplog.at_level(logging.WARNING, "vllm_epd.transfer"):
        producer, consumer = pair(make_party, transport="auto")
    assert "nixl is not installed" in caplog.text
    assert producer.state().tiers == ["shm"]
    assert consumer.pull(producer.offer("k", pattern("k", 100))) == wire.Pulled(0)
    with pytest.raises(TransferError, match="nixl is not installed"):
        TransferAgent(config(transport="nixl"))


def test_where_shared_memory_does_not_reach_nixl_does(make_party, monkeypatch):
    def other_host(self, description):
        raise PeerError("another host")

    monkeypatch.setattr(ShmTransport, "connect", other_host)
    producer, consumer = pair(make_party, transport="auto")
    assert producer.state().tiers == ["shm", "nixl"]
    assert consumer.pull(producer.offer("k", pattern("k", 5000))) == wire.Pulled(0)
    assert torch.equal(consumer.load(0, "k"), pattern("k", 5000))


def test_what_goes_wrong_oddly_at_start_is_an_error_of_its_maker(monkeypatch):
    unhandled = []
    monkeypatch.setattr(threading, "excepthook", unhandled.append)
    monkeypatch.setattr(tiers, "MAKERS", {**tiers.MAKERS, "shm": lambda memory: 1 / 0})
    with pytest.raises(TransferError, match="ZeroDivisionError"):
        TransferAgent(config())
    wait_until(lambda: unhandled)


@pytest.mark.parametrize("broken", [{"transport": "cuda_ipc"}, {"pool_bytes": PAGE - 1}, {"command": "nonsense"}])
def test_an_agent_that_does_not_start_keeps_nothing_open(broken):
    def attempt():
        with pytest.raises(TransferError):
            TransferAgent(config(**broken))

    attempt()
    before = _descriptors()
    for _ in range(10):
        attempt()
    wait_until(lambda: _descriptors() <= before)


def _descriptors():
    return len(os.listdir("/proc/self/fd"))


@TRANSPORTS
def test_an_agent_closes_while_pulls_are_on_their_way(make_party, transport):
    producer, consumer = pair(make_party, transport=transport, pool_bytes=64 << 20)
    producer.store.put("k", pattern("k", 60 << 20))
    consumer.tell(wire.Pull(1, producer.handle("k", 60 << 20)), wire.Pull(2, producer.handle("none", 100)))
    wait_until(lambda: consumer.store.status("k") is not None)
    consumer.close()
    assert not consumer.agent._thread.is_alive()
    with pytest.raises(EmbeddingLostError):
        consumer.agent.store.take("none", CPU)
    producer.store.end_lease("k")
    assert isinstance(producer.state(), wire.PoolState)


def test_closing_twice_does_nothing():
    party = Party()
    party.close()
    party.agent.close()


def test_two_agents_of_one_process_keep_apart(make_party):
    one, two = pair(make_party)
    assert two.pull(one.offer("k", pattern("k", 100))) == wire.Pulled(0)
    assert one.state().encoded == two.state().fetched == 1
    assert one.state().fetched == two.state().encoded == 0


def test_an_agent_without_listener_only_fetches(make_party):
    producer, consumer = make_party(), make_party(listen=None)
    consumer.meet(producer)
    assert consumer.pull(producer.offer("k", pattern("k", 100))) == wire.Pulled(0)


@pytest.mark.parametrize(
    "command",
    [
        wire.Reserve([]),
        wire.Withdraw(["unknown"]),
        wire.Drop(12, 3),
        wire.Reserve([wire.Wanted(1, "a", "l", 10), wire.Wanted(2, "b", "l", 10)]),
        wire.Reserve([wire.Wanted(1, "a", "l", -10)]),
    ],
)
def test_a_senseless_command_does_not_silence_the_agent(make_party, command):
    party = make_party(lease_s=0.05)
    party.tell(command, wire.AskPool())
    wait_until(lambda: isinstance(party.report(), wire.PoolState))
    wait_until(lambda: party.store.state().pinned == 0)
    assert party.store.state().free_bytes == party.store.capacity_bytes


def test_a_lease_that_names_another_item_is_answered(make_party):
    party = make_party()
    party.offer("a", pattern("a", 100), "lease")
    party.offer("b", pattern("b", 100))
    assert party.ask(wire.TakeLease("b", "lease")) == wire.LeaseTaken(None)
    assert party.ask(wire.TakeLease("b", "more")) == wire.LeaseTaken(100)
    assert party.ask(wire.TakeLease("c", "more")) == wire.LeaseTaken(None)


def test_a_transport_that_stumbles_goes_on_serving(make_party, monkeypatch):
    producer, consumer = pair(make_party, transport="nixl")
    stumbles = []

    def stumble(self):
        stumbles.append(1)
        raise TransferError("a peer has vanished")

    with monkeypatch.context() as patch:
        patch.setattr(NixlTransport, "progress", stumble)
        producer.offer("a", pattern("a", 5000))
        consumer.tell(wire.Pull(1, producer.handle("a", 5000)))
        wait_until(lambda: len(stumbles) > 1)
    assert consumer.report() == wire.Pulled(1)
    assert consumer.pull(producer.offer("b", pattern("b", 5000)), 2) == wire.Pulled(2)
