# SPDX-License-Identifier: Apache-2.0
"""Whatever an agent is sent, it goes on serving those who are honest, and keeps nothing for those who are not."""

import asyncio
import logging
import math
import threading
from dataclasses import replace

import msgspec
import pytest

torch = pytest.importorskip("torch")

import zmq  # noqa: E402
from hypothesis import given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402

from tests.unit.transfer import hostile  # noqa: E402
from tests.unit.transfer.parties import FINGERPRINT, Party, new_address, pattern, wait_until  # noqa: E402
from vllm_epd.transfer import wire  # noqa: E402
from vllm_epd.transfer.handshake import Identity  # noqa: E402
from vllm_epd.transfer.items import lease_pin  # noqa: E402
from vllm_epd.transfer.region import host_region  # noqa: E402
from vllm_epd.transfer.serve import Server  # noqa: E402
from vllm_epd.transfer.store import EmbeddingStore  # noqa: E402
from vllm_epd.transfer.tiers import TransferMemory, open_tiers  # noqa: E402

HONEST_ANSWER_S = 1.0
NBYTES = 256
SECRET = b"s"
CONSUMER = Identity("consumer", FINGERPRINT, SECRET)


def rounds(count):
    return settings(hostile.PROFILE, max_examples=count)


@pytest.fixture(autouse=True)
def _quiet():
    logging.disable(logging.ERROR)
    yield
    logging.disable(logging.NOTSET)


@pytest.fixture(scope="module")
def tiers():
    tiers = open_tiers(TransferMemory(1 << 20, transport="shm"))
    yield tiers
    tiers.close()


@rounds(250)
@given(frames=st.lists(hostile.REQUEST_FRAMES, min_size=1, max_size=6), admitted=st.booleans())
def test_a_server_refuses_and_counts_what_it_cannot_read(tiers, frames, admitted):
    asyncio.run(_check_server(tiers, frames, admitted))


async def _check_server(tiers, frames, admitted):
    store = EmbeddingStore(tiers.region, 4096)
    server = Server(Identity("producer", FINGERPRINT, SECRET), tiers, store, 20.0)
    store.put("k", pattern("k", NBYTES))
    store.lease("k", "mine", 60.0)
    if admitted:
        await _introduce(server, b"hostile")
    grants = []
    for frame in frames:
        refused, known = server.refused, _is_admitted(server)
        reply = await asyncio.wait_for(server.handle(b"hostile", frame), HONEST_ANSWER_S)
        assert (server.refused - refused) == isinstance(reply, wire.Refused)
        assert known or isinstance(reply, wire.Refused | wire.Challenge)
        if isinstance(reply, wire.Granted):
            grants.append(reply.grant)
        if _reads(wire.decode_request, frame) is None:
            assert isinstance(reply, wire.Refused)
    await _introduce(server, b"honest")
    granted = await server.handle(b"honest", wire.encode(wire.Fetch("k", "shm")))
    assert isinstance(granted, wire.Granted)
    for grant in (*grants, granted.grant):
        await server.handle(b"honest", wire.encode(wire.Done(grant)))
    assert store.state().pinned_bytes == NBYTES
    assert store.release(lease_pin("mine"))
    assert (store.state().pinned, store.state().items) == (0, 1)


def _is_admitted(server):
    return b"hostile" in server._visitors and server._visitors[b"hostile"].admitted


async def _introduce(server, visitor):
    hello = CONSUMER.hello("producer", ["shm"])
    challenge = await server.handle(visitor, wire.encode(hello))
    assert isinstance(await server.handle(visitor, wire.encode(CONSUMER.prove(hello, challenge))), wire.Welcome)


def _reads(decode, frame):
    try:
        return decode(frame)
    except Exception:  # noqa: BLE001  whatever the decoder raises
        return None


class Visitor:
    """A raw socket to an agent's listener."""

    def __init__(self, party):
        self._context = zmq.Context()
        self.socket = self._context.socket(zmq.DEALER)
        self.socket.connect(party.config.listen)
        self._identity = replace(CONSUMER)
        self._epoch = party.epoch

    def ask(self, message):
        self.socket.send_multipart([b"honest", wire.encode(message)])
        while True:
            assert self.socket.poll(HONEST_ANSWER_S * 1000), "an honest request is not answered in time"
            request_id, frame = self.socket.recv_multipart()
            if request_id == b"honest":
                return wire.decode_reply(frame)

    def introduce(self):
        hello = self._identity.hello(self._epoch, ["shm"])
        assert isinstance(self.ask(self._identity.prove(hello, self.ask(hello))), wire.Welcome)

    def close(self):
        self._context.destroy(linger=0)


@pytest.fixture(scope="module")
def producer():
    party = Party(secret=SECRET, timeout_s=0.2)
    yield party
    party.close()


MULTIPART = st.lists(st.binary(max_size=8) | hostile.REQUEST_FRAMES, min_size=1, max_size=4)
FRAMED = st.tuples(st.just(b"id") | st.just(b""), hostile.REQUEST_FRAMES).map(list)


@rounds(200)
@given(messages=st.lists(FRAMED | MULTIPART, min_size=1, max_size=5), admitted=st.booleans())
def test_a_live_agent_answers_the_next_honest_request(producer, messages, admitted):
    if producer.store.status("k") is None:
        producer.store.put("k", pattern("k", NBYTES))
    visitor, friend = Visitor(producer), Visitor(producer)
    try:
        if admitted:
            visitor.introduce()
        for message in messages:
            visitor.socket.send_multipart(message)
        friend.introduce()
        granted = friend.ask(wire.Fetch("k", "shm"))
        assert isinstance(granted, wire.Granted)
        friend.socket.send_multipart([b"", wire.encode(wire.Done(granted.grant))])
    finally:
        visitor.close()
        friend.close()


def test_after_all_that_the_agent_holds_nothing_and_serves(producer, make_party):
    wait_until(lambda: producer.store.state().pinned == 0)
    consumer = make_party(secret=SECRET)
    consumer.meet(producer)
    assert consumer.pull(producer.offer("new", pattern("new", NBYTES))) == wire.Pulled(0)
    assert torch.equal(consumer.load(0, "new"), pattern("new", NBYTES))


class HostileProducer:
    """Goes through the handshake up to `stage` and answers from there on with `frames`, over and over."""

    STAGES = (wire.Hello, wire.Proof, wire.Fetch)

    def __init__(self, tiers, epoch, stage, answers):
        self._region = host_region(4096)
        self._server = Server(Identity(epoch, FINGERPRINT, SECRET), tiers, EmbeddingStore(self._region, 4096), 5.0)
        self._stage = stage
        self._answers = answers
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.ROUTER)
        self.address = new_address()
        self._socket.bind(self.address)
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def _serve(self):
        while not self._over.is_set():
            if self._socket.poll(5):
                visitor, request_id, frame = self._socket.recv_multipart()
                self._reply(visitor, request_id, frame)

    def _reply(self, visitor, request_id, frame):
        request = wire.decode_request(frame)
        if not isinstance(request, HostileProducer.STAGES):
            return
        if HostileProducer.STAGES.index(type(request)) >= self._stage:
            for answer in self._answers:
                self._socket.send_multipart([visitor, *(part if part is not None else request_id for part in answer)])
        else:
            reply = asyncio.run(self._server.handle(visitor, frame))
            self._socket.send_multipart([visitor, request_id, wire.encode(reply)])

    def close(self):
        self._over.set()
        self._thread.join()
        self._context.destroy(linger=0)
        self._region.close()


@pytest.fixture(scope="module")
def consumer(producer):
    party = Party(secret=SECRET, timeout_s=HONEST_ANSWER_S)
    yield party
    party.close()


ANSWER = st.tuples(st.none(), hostile.REPLY_FRAMES)
"""`None` stands for the id of the request."""
MISFRAMED = st.lists(st.none() | hostile.REPLY_FRAMES, min_size=1, max_size=3)
"""A consumer does not know what these answer, so it waits for its time limit: a few are enough."""
ANSWERS = st.integers(0, 9).flatmap(
    lambda number: st.lists(ANSWER if number else ANSWER | MISFRAMED, min_size=1, max_size=2)
)
GRANTS = st.tuples(st.none(), hostile.GRANT_FRAMES).map(lambda each: [each])
ATTACK = st.tuples(st.sampled_from([0, 1, 2]), ANSWERS) | st.tuples(st.just(2), GRANTS)


@rounds(120)
@given(attack=ATTACK)
def test_a_consumer_survives_a_hostile_producer(tiers, producer, consumer, attack):
    stage, answers = attack
    hostile_producer = HostileProducer(tiers, "hostile", stage, answers)
    try:
        consumer.tell(wire.SetPeers({"hostile": [hostile_producer.address], producer.epoch: [producer.config.listen]}))
        handle = wire.EmbeddingHandle(wire.WIRE_VERSION, "k", "l", "hostile", 0, NBYTES)
        report = consumer.pull(handle, 1)
        if isinstance(report, wire.Pulled):
            _only_what_was_announced(consumer, answers)
        consumer.tell(wire.Drop(1, 0), wire.SetPeers({}))
    finally:
        hostile_producer.close()
    _serves_an_honest_pull(producer, consumer)


def _only_what_was_announced(consumer, answers):
    """A producer may lie about the bytes; their shape and size are what it granted."""
    tensor = consumer.load(1, "k")
    granted = [found for answer in answers if isinstance(found := _reads(wire.decode_reply, answer[-1]), wire.Granted)]
    assert tensor.nbytes == NBYTES
    assert list(tensor.shape) in [grant.shape for grant in granted]
    assert any(grant.grant_s > 0 for grant in granted)


def _serves_an_honest_pull(producer, consumer):
    wait_until(lambda: consumer.state().pinned == 0)
    consumer.store.put("filler", torch.zeros(1 << 20, dtype=torch.uint8))
    assert consumer.store.status("k") is None, "the pages of the attack are free again"
    if producer.store.status("good") is None:
        producer.store.put("good", pattern("good", NBYTES))
    consumer.meet(producer)
    consumer.tell(wire.Pull(2, producer.handle("good", NBYTES)))
    assert consumer.report(HONEST_ANSWER_S) == wire.Pulled(2)
    assert torch.equal(consumer.load(2, "good"), pattern("good", NBYTES))
    consumer.tell(wire.Drop(2, 0))


GRANT = wire.Granted("g", [(0, NBYTES)], [NBYTES], "uint8", 20.0)
LIES = {
    "unknown dtype": ({"dtype": "nn"}, "unknown dtype 'nn'"),
    "attribute of torch": ({"dtype": "__class__"}, "unknown dtype '__class__'"),
    "module of torch": ({"dtype": "_inductor"}, "unknown dtype '_inductor'"),
    "negative shape": ({"shape": [-16, -16]}, "does not match 256 bytes"),
    "enormous shape": ({"shape": [2**62, 4]}, "does not match 256 bytes"),
    "too many dimensions": ({"shape": [2**63 - 1] * 200_000}, "200000 dimensions"),
    "other dtype": ({"dtype": "float64"}, "does not match 256 bytes"),
    "unknown codec": ({"codec": "zip"}, "unknown codec 'zip'"),
    "codec that does not fit": ({"codec": "int8"}, "of uint8 as int8 does not match 256 bytes"),
    "codec without a row": ({"codec": "int8", "shape": [], "dtype": "float32"}, "does not match 256 bytes"),
    "codec of a negative width": ({"codec": "fp8", "shape": [-1, -260], "dtype": "float32"}, "does not match"),
    "other checksum": ({"checksum": 1}, "arrived damaged"),
    "fewer bytes": ({"spans": [(0, 128)]}, "256 bytes was announced, 128 are offered"),
    "negative span": ({"spans": [(0, 512), (0, -256)]}, "lies outside"),
    "empty span": ({"spans": [(0, NBYTES), (0, 0)]}, "lies outside"),
    "before the region": ({"spans": [(-1, NBYTES)]}, "lies outside"),
    "beyond the region": ({"spans": [((1 << 20) - 1, NBYTES)]}, "lies outside"),
    "no number": ({"grant_s": math.nan}, "a grant of nan s"),
    "negative time": ({"grant_s": -1.0}, "a grant of -1.0 s"),
    "over at once": ({"grant_s": 1e-300}, "ended before the read did"),
}


@pytest.mark.parametrize(("changes", "reason"), LIES.values(), ids=LIES.keys())
def test_each_lie_of_a_grant_is_named(tiers, producer, consumer, changes, reason):
    frame = wire.encode(msgspec.structs.replace(GRANT, **changes))
    hostile_producer = HostileProducer(tiers, "hostile", 2, [[None, frame]])
    try:
        consumer.tell(wire.SetPeers({"hostile": [hostile_producer.address]}))
        report = consumer.pull(wire.EmbeddingHandle(wire.WIRE_VERSION, "k", "l", "hostile", 0, NBYTES), 1)
        assert isinstance(report, wire.PullFailed)
        assert reason in report.reason
        consumer.tell(wire.SetPeers({}))
    finally:
        hostile_producer.close()
    _serves_an_honest_pull(producer, consumer)


@pytest.fixture(scope="module")
def instructed():
    party = Party(timeout_s=0.1, lease_s=0.05)
    yield party
    party.close()


COMMAND_MESSAGES = hostile.COMMAND_FRAMES.map(lambda frame: [frame]) | st.lists(
    hostile.COMMAND_FRAMES, min_size=2, max_size=3
)


@rounds(300)
@given(messages=st.lists(COMMAND_MESSAGES, min_size=1, max_size=5))
def test_senseless_commands_do_not_silence_an_agent(instructed, messages):
    for message in messages:
        instructed.orders.send_multipart(message)
    instructed.tell(wire.AskPool())
    while not isinstance(instructed.report(HONEST_ANSWER_S), wire.PoolState):
        pass


def test_after_all_that_the_instructed_agent_holds_nothing(instructed):
    wait_until(lambda: instructed.store.state().pinned == 0)
    assert instructed.store.state().free_bytes == instructed.store.capacity_bytes
    assert isinstance(instructed.ask(wire.TakeLease("k", "l")), wire.LeaseTaken | wire.PullFailed | wire.ReserveFailed)
