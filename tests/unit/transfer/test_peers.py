# SPDX-License-Identifier: Apache-2.0
"""Whom an agent connects to, how long it waits to hear of them, and that it lets go of those who are gone."""

import asyncio
from contextlib import asynccontextmanager

import pytest

torch = pytest.importorskip("torch")

import msgspec  # noqa: E402
import zmq.asyncio  # noqa: E402

from tests.unit.transfer.parties import FINGERPRINT, new_address, pattern, until, wait_until  # noqa: E402
from vllm_epd.errors import PeerError  # noqa: E402
from vllm_epd.transfer import peers as peers_module  # noqa: E402
from vllm_epd.transfer import wire  # noqa: E402
from vllm_epd.transfer.fetch import Fetcher  # noqa: E402
from vllm_epd.transfer.handshake import Identity  # noqa: E402
from vllm_epd.transfer.items import StoredItem  # noqa: E402
from vllm_epd.transfer.peers import PeerBook  # noqa: E402
from vllm_epd.transfer.pool import Span  # noqa: E402
from vllm_epd.transfer.serve import Server  # noqa: E402
from vllm_epd.transfer.tiers import Link  # noqa: E402

NBYTES = 256


async def test_an_instance_never_heard_of_is_waited_for_and_then_refused():
    book = PeerBook(wait_s=0.05)
    with pytest.raises(PeerError, match="no registered instance has epoch 'e'"):
        await book.address("e", 0)


async def test_an_instance_that_registers_while_somebody_waits_is_found():
    book = PeerBook(wait_s=20)
    waiting = asyncio.create_task(book.address("e", 1))
    await asyncio.sleep(0)
    book.set({"other": ["x"]})
    for _ in range(5):
        await asyncio.sleep(0)
    assert not waiting.done()
    book.set({"e": ["x", "y"]})
    assert await waiting == "y"


@pytest.mark.parametrize("agent", [2, -1, 2**40])
async def test_a_number_out_of_range_is_refused(agent):
    book = PeerBook()
    book.set({"e": ["x", "y"]})
    with pytest.raises(PeerError, match=f"has 2 agents, none is number {agent}"):
        await book.address("e", agent)


async def test_what_is_told_replaces_what_was_known():
    book = PeerBook(wait_s=0.01)
    book.set({"e": ["x"]})
    book.set({"f": ["y"]})
    assert "e" not in book
    with pytest.raises(PeerError):
        await book.address("e", 0)


class FakePeer:
    closed = False

    def close(self):
        self.closed = True


class HeldUpRead:
    """A read that ends when the test says so, and complains about a peer that is closed under it."""

    works_in_poll = True

    def __init__(self, transport):
        self._transport = transport

    def poll(self):
        assert not self._transport.peers[-1].closed
        return self._transport.reads_end

    def close(self):
        pass


class FakeTransport:
    name = "shm"

    def __init__(self):
        self.peers = []
        self.reads_end = True
        self.reads = 0

    def describe(self):
        return b""

    def connect(self, description):
        self.peers.append(FakePeer())
        return self.peers[-1]

    def read(self, peer, remote, local):
        self.reads += 1
        return HeldUpRead(self)


class FakeTiers:
    def __init__(self, transport):
        self._transport = transport
        self.names = ["shm"]

    def offers(self, wanted):
        return [wire.Tier("shm", b"")]

    def connect(self, offers):
        return Link(self._transport, self._transport.connect(b""))


class FakeStore:
    """Holds everything, in the same place."""

    def grant(self, key, grant, grant_s):
        return StoredItem((Span(0, NBYTES),), (NBYTES,), torch.uint8)

    def release(self, pin):
        return True

    def end_lease(self, lease):
        return True


class Scene:
    """One fetcher, and a producer whose memory of its visitors the test can wipe."""

    def __init__(self, context):
        self.transport = FakeTransport()
        tiers = FakeTiers(self.transport)
        self.book = PeerBook(wait_s=20)
        self.server = Server(Identity("producer", FINGERPRINT), tiers, FakeStore(), 20.0)
        self.fetcher = Fetcher(context, Identity("consumer", FINGERPRINT), tiers, self.book, 20.0)
        self.address = new_address()
        self.listener = context.socket(zmq.ROUTER)
        self.listener.bind(self.address)
        self.heard = []

    async def serve(self):
        while True:
            visitor, request_id, frame = await self.listener.recv_multipart()
            self.heard.append(wire.decode_request(frame))
            reply = await self.server.handle(visitor, frame)
            if reply is not None and request_id:
                await self.listener.send_multipart([visitor, request_id, wire.encode(reply)])

    def fetch(self, key="k", epoch="producer"):
        handle = wire.EmbeddingHandle(wire.WIRE_VERSION, key, "l", epoch, 0, NBYTES)
        return asyncio.create_task(self.fetcher.fetch(handle, [Span(0, NBYTES)]))

    def forget_visitors(self):
        self.server._visitors.clear()


@asynccontextmanager
async def open_scene():
    with zmq.asyncio.Context() as context:
        scene = Scene(context)
        serving = asyncio.create_task(scene.serve())
        try:
            yield scene
        finally:
            await scene.fetcher.close()
            serving.cancel()
            await asyncio.wait([serving])
            context.destroy(linger=0)


async def test_a_peer_that_unregisters_is_closed_and_forgotten():
    async with open_scene() as scene:
        scene.book.set({"producer": [scene.address]})
        await scene.fetch()
        scene.book.set({})
        await scene.fetcher.forget_strangers()
        assert [peer.closed for peer in scene.transport.peers] == [True]
        scene.book.set({"producer": [scene.address]})
        await scene.fetch()
        assert [peer.closed for peer in scene.transport.peers] == [True, False]


async def test_a_peer_that_unregisters_under_a_read_is_closed_after_it():
    async with open_scene() as scene:
        scene.book.set({"producer": [scene.address]})
        scene.transport.reads_end = False
        fetch = scene.fetch()
        await until(lambda: scene.transport.reads)
        scene.book.set({})
        forgetting = asyncio.create_task(scene.fetcher.forget_strangers())
        for _ in range(10):
            await asyncio.sleep(0)
        assert not scene.transport.peers[0].closed
        scene.transport.reads_end = True
        assert (await fetch).shape == (NBYTES,)
        await forgetting
        assert scene.transport.peers[0].closed


async def test_somebody_elses_registration_does_not_end_the_wait_for_a_peer():
    async with open_scene() as scene:
        fetch = scene.fetch()
        await asyncio.sleep(0)
        scene.book.set({"other": ["tcp://127.0.0.1:9"]})
        await scene.fetcher.forget_strangers()
        for _ in range(10):
            await asyncio.sleep(0)
        assert not fetch.done()
        scene.book.set({"producer": [scene.address]})
        assert (await fetch).dtype is torch.uint8


async def test_a_peer_that_unregisters_during_the_handshake_is_not_kept():
    async with open_scene() as scene:
        scene.book.set({"producer": [scene.address]})
        handle = scene.server.handle

        async def unregister_and_handle(visitor, frame):
            scene.book.set({})
            await scene.fetcher.forget_strangers()
            return await handle(visitor, frame)

        scene.server.handle = unregister_and_handle
        with pytest.raises(PeerError, match="not registered any more"):
            await scene.fetch()
        await until(lambda: not scene.fetcher._connections)


async def test_a_question_without_an_answer_fails_when_the_peer_unregisters():
    async with open_scene() as scene:
        scene.book = scene.fetcher._peers = PeerBook(wait_s=0.05)
        scene.book.set({"producer": [scene.address]})
        await scene.fetch()
        scene.server.handle = _silent
        heard = len(scene.heard)
        fetch = scene.fetch()
        await until(lambda: len(scene.heard) > heard)
        scene.book.set({})
        await scene.fetcher.forget_strangers()
        with pytest.raises(PeerError, match="no registered instance"):
            await asyncio.wait_for(fetch, 5)


async def _silent(visitor, frame):
    return None


async def test_many_fetches_survive_a_producer_that_forgot_them():
    async with open_scene() as scene:
        scene.book.set({"producer": [scene.address]})
        await scene.fetch()
        for _ in range(5):
            scene.forget_visitors()
            fetched = await asyncio.gather(*(scene.fetch(f"k{number}") for number in range(8)))
            assert [each.shape for each in fetched] == [(NBYTES,)] * 8
        assert sum(not peer.closed for peer in scene.transport.peers) == 1


async def test_a_connection_that_fails_oddly_is_tried_anew(monkeypatch):
    async with open_scene() as scene:
        scene.book.set({"producer": [scene.address]})
        monkeypatch.setattr(scene.transport, "connect", _crash)
        with pytest.raises(RuntimeError, match="odd"):
            await scene.fetch()
        monkeypatch.undo()
        assert (await scene.fetch()).shape == (NBYTES,)


def _crash(description):
    raise RuntimeError("odd")


async def test_an_acknowledgement_never_waits_for_a_producer_that_takes_none():
    async with open_scene() as scene:
        scene.book.set({"producer": [scene.address]})
        await scene.fetch()
        handle = wire.EmbeddingHandle(wire.WIRE_VERSION, "k", "l", "producer", 0, NBYTES)
        scene.listener.close()
        async with asyncio.timeout(10):
            for _ in range(3000):
                await scene.fetcher.acknowledge(handle)


def test_a_pull_from_an_unknown_instance_fails_with_its_reason(make_party, monkeypatch):
    monkeypatch.setattr(peers_module.PeerBook.__init__, "__defaults__", (0.05,))
    consumer = make_party()
    report = consumer.pull(wire.EmbeddingHandle(wire.WIRE_VERSION, "k", "l", "nobody", 0, 10))
    assert isinstance(report, wire.PullFailed)
    assert "no registered instance has epoch 'nobody'" in report.reason
    assert consumer.state().free_bytes == consumer.state().capacity_bytes


def test_the_memory_of_a_forgotten_peer_is_unmapped(make_party):
    producer, consumer = make_party(), make_party()
    before = _peer_mappings()
    consumer.meet(producer)
    for number in range(3):
        handle = producer.offer(f"k{number}", pattern("k", 5000))
        assert consumer.pull(handle, number) == wire.Pulled(number)
    assert _peer_mappings() == before + 1
    consumer.meet()
    wait_until(lambda: _peer_mappings() == before)
    assert consumer.load(0, "k0") is not None


def _peer_mappings():
    with open("/proc/self/maps") as maps:
        return sum(" r--s " in line and "memfd:epd-pool" in line for line in maps)


def test_the_order_of_ranks_is_that_of_the_addresses(make_party):
    producer, consumer = make_party(), make_party()
    handle = producer.offer("k", pattern("k", 5000))
    consumer.tell(wire.SetPeers({producer.epoch: [new_address(), producer.config.listen]}))
    ranked = wire.EmbeddingHandle(2, "k", "k", producer.epoch, 1, handle.nbytes)
    assert consumer.pull(ranked) == wire.Pulled(0)
    wrong = msgspec.structs.replace(ranked, key="other", rank=2)
    assert "none is number 2" in consumer.pull(wrong, 1).reason
