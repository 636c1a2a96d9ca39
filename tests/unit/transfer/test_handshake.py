# SPDX-License-Identifier: Apache-2.0
"""Who is let in, and what those who are not are told."""

from dataclasses import replace

import msgspec
import pytest

pytest.importorskip("torch")

from vllm_epd.errors import PeerError, TransferError  # noqa: E402
from vllm_epd.transfer import wire  # noqa: E402
from vllm_epd.transfer.handshake import Identity  # noqa: E402
from vllm_epd.transfer.region import host_region  # noqa: E402
from vllm_epd.transfer.serve import MAX_PEERS, Server  # noqa: E402
from vllm_epd.transfer.shard import Shard  # noqa: E402
from vllm_epd.transfer.store import EmbeddingStore  # noqa: E402
from vllm_epd.transfer.tiers import Tiers  # noqa: E402
from vllm_epd.types import Fingerprint  # noqa: E402

FINGERPRINT = Fingerprint("c", "w", "float32", "p", "0.32.0")
PRODUCER = Identity("producer", FINGERPRINT, b"secret")
VERSION = wire.WIRE_VERSION
CONSUMER = Identity("consumer", FINGERPRINT, b"secret")


class NoBytes:
    """A transport that there is no need to use."""

    name = "shm"

    def describe(self):
        return b"here"

    def close(self):
        pass


@pytest.fixture
def server():
    region = host_region(4096)
    yield Server(PRODUCER, Tiers(region, [NoBytes()]), EmbeddingStore(region, 4096), 5.0)
    region.close()


async def say(server, message, visitor=b"v"):
    frame = message if isinstance(message, bytes) else wire.encode(message)
    return await server.handle(visitor, frame)


async def introduce(server, consumer=CONSUMER, hello=None, visitor=b"v"):
    """The producer's last word to a consumer that goes through the whole handshake."""
    hello = hello or consumer.hello("producer", ["shm"])
    challenge = await say(server, hello, visitor)
    assert isinstance(challenge, wire.Challenge)
    return await say(server, wire.Proof(consumer._mac(b"consumer", hello, challenge.nonce)), visitor)


async def test_those_who_share_all_are_let_in(server):
    hello = CONSUMER.hello("producer", ["nixl", "shm"])
    challenge = await say(server, hello)
    welcome = await say(server, CONSUMER.prove(hello, challenge))
    CONSUMER.accept(welcome, "producer")
    assert welcome.tiers == [wire.Tier("shm", b"here")]
    assert isinstance(await say(server, wire.Fetch("k", "shm")), wire.Lost)
    assert server.refused == 0


async def test_a_consumer_with_another_secret_is_refused(server):
    reply = await introduce(server, replace(CONSUMER, secret=b"other"))
    assert reply == wire.Refused("the consumer has another shared secret; set the same EPD_TOKEN everywhere")
    assert await say(server, wire.Fetch("k", "shm")) == wire.Refused("say Hello first")
    assert server.refused == 2


@pytest.mark.parametrize("secret", [b"other", b""])
def test_a_producer_with_another_secret_is_recognised_before_anything_is_proved_to_it(secret):
    hello = CONSUMER.hello("producer", ["shm"])
    with pytest.raises(PeerError, match="the producer has another shared secret"):
        CONSUMER.prove(hello, replace(PRODUCER, secret=secret).challenge(hello))


def test_the_producers_own_mac_is_no_proof():
    hello = CONSUMER.hello("producer", ["shm"])
    challenge = PRODUCER.challenge(hello)
    with pytest.raises(PeerError, match="the consumer has another"):
        PRODUCER.admit(hello, challenge, wire.Proof(challenge.mac))


async def test_a_consumer_of_wire_version_1_is_told_so(server):
    frame = msgspec.msgpack.encode(
        {"type": "Hello", "version": 1, "epoch": "e", "fingerprint": {"code": "c"}, "transport": "nixl"}
    )
    assert await say(server, frame) == wire.Refused(f"wire version 1, this instance speaks {wire.WIRE_VERSION}")


async def test_a_newer_consumer_is_told_so(server):
    newer = wire.WIRE_VERSION + 1
    refused = wire.Refused(f"wire version {newer}, this instance speaks {wire.WIRE_VERSION}")
    hello = replace_struct(CONSUMER.hello("producer", ["shm"]), version=newer)
    assert await say(server, hello) == refused
    strange = msgspec.msgpack.encode({"type": "Hello", "version": newer, "who": ["knows"]})
    assert await say(server, strange) == refused


@pytest.mark.parametrize("version", [1, wire.WIRE_VERSION + 1])
def test_a_consumer_recognises_a_producer_of_another_version(version):
    hello = CONSUMER.hello("producer", ["shm"])
    challenge = replace_struct(PRODUCER.challenge(hello), version=version)
    with pytest.raises(PeerError, match=f"wire version {version}, this instance speaks {wire.WIRE_VERSION}"):
        CONSUMER.prove(hello, challenge)


async def test_another_fingerprint_is_refused_by_name_of_what_differs(server):
    reply = await introduce(server, replace(CONSUMER, fingerprint=replace(FINGERPRINT, weights="x")))
    assert reply == wire.Refused("fingerprints differ: weights: w != x")


@pytest.mark.parametrize(
    ("shard", "reason"),
    [
        (Shard(0, 4), "the consumer has tensor-parallel size 4, the producer 2; give both the same, or use"),
        (Shard(), "the consumer has tensor-parallel size 1, the producer 2; give both the same, or use"),
        (Shard(0, 2), "the consumer wants part 0 of 2, here is part 1"),
    ],
)
def test_who_wants_other_parts_is_refused_by_name_of_both(shard, reason):
    producer, consumer = replace(PRODUCER, shard=Shard(1, 2)), replace(CONSUMER, shard=shard)
    hello = consumer.hello("producer", ["shm"])
    challenge = producer.challenge(hello)
    with pytest.raises(PeerError, match=reason):
        producer.admit(hello, challenge, consumer.prove(hello, challenge))


def test_who_has_the_same_part_is_let_in():
    producer, consumer = replace(PRODUCER, shard=Shard(1, 2)), replace(CONSUMER, shard=Shard(1, 2))
    hello = consumer.hello("producer", ["shm"])
    challenge = producer.challenge(hello)
    producer.admit(hello, challenge, consumer.prove(hello, challenge))


async def test_what_is_no_fingerprint_is_refused(server):
    hello = replace_struct(CONSUMER.hello("producer", ["shm"]), fingerprint={"weights": "w"})
    reply = await introduce(server, hello=hello)
    assert isinstance(reply, wire.Refused)
    assert "fingerprint" in reply.reason


async def test_a_consumer_that_expects_an_instance_before_its_restart_is_refused(server):
    reply = await introduce(server, hello=CONSUMER.hello("older", ["shm"]))
    assert reply == wire.Refused("epoch older is over, the instance was restarted as producer")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"epoch": "newer"}, "epoch producer is over, the instance was restarted as newer"),
        ({"fingerprint": replace(FINGERPRINT, dtype="float16").to_mapping()}, "fingerprints differ: dtype"),
        ({"fingerprint": {}}, "fingerprint"),
    ],
)
def test_a_consumer_checks_who_welcomes_it(changes, message):
    welcome = wire.Welcome("producer", FINGERPRINT.to_mapping(), [])
    CONSUMER.accept(welcome, "producer")
    with pytest.raises(PeerError, match=message):
        CONSUMER.accept(replace_struct(welcome, **changes), "producer")


async def test_without_a_transport_in_common_a_consumer_is_refused(server):
    reply = await introduce(server, hello=CONSUMER.hello("producer", ["nixl"]))
    assert reply == wire.Refused("no transport in common: ['nixl'] there, ['shm'] here")


async def test_a_proof_is_worth_nothing_on_another_connection(server):
    hello = CONSUMER.hello("producer", ["shm"])
    proof = CONSUMER.prove(hello, await say(server, hello, b"one"))
    assert isinstance(await say(server, proof, b"one"), wire.Welcome)
    await say(server, hello, b"two")
    assert "another shared secret" in (await say(server, proof, b"two")).reason
    assert await say(server, wire.Fetch("k", "shm"), b"two") == wire.Refused("say Hello first")
    assert isinstance(await say(server, wire.Fetch("k", "shm"), b"one"), wire.Lost)


async def test_a_proof_does_not_cover_another_hello(server):
    hello = CONSUMER.hello("producer", ["shm"])
    challenge = await say(server, replace_struct(hello, consumer="somebody"))
    assert (
        "another shared secret"
        in (await say(server, wire.Proof(CONSUMER._mac(b"consumer", hello, challenge.nonce)))).reason
    )


@pytest.mark.parametrize(
    "message", [wire.Proof(b"\0" * 32), wire.Fetch("k", "shm"), wire.Done("g"), wire.Acknowledge("l")]
)
async def test_nothing_is_listened_to_before_a_hello(server, message):
    assert await say(server, message) == wire.Refused("say Hello first")
    assert server.refused == 1


@pytest.mark.parametrize("message", [wire.Fetch("k", "shm"), wire.Acknowledge("l")])
async def test_a_hello_alone_opens_nothing(server, message):
    await say(server, CONSUMER.hello("producer", ["shm"]))
    assert await say(server, message) == wire.Refused("say Hello first")


async def test_a_second_hello_starts_anew(server):
    await introduce(server)
    await say(server, CONSUMER.hello("producer", ["shm"]))
    assert await say(server, wire.Fetch("k", "shm")) == wire.Refused("say Hello first")


@pytest.mark.parametrize("nonce", [b"", b"\0" * 15, b"\0" * 17])
async def test_a_nonce_of_another_length_is_refused(server, nonce):
    hello = replace_struct(CONSUMER.hello("producer", ["shm"]), nonce=nonce)
    assert await say(server, hello) == wire.Refused(f"a nonce of {len(nonce)} bytes, expected 16")


async def test_the_connection_unheard_of_for_longest_is_forgotten_first(server):
    await introduce(server, visitor=b"quiet")
    await introduce(server, visitor=b"busy")
    for number in range(MAX_PEERS - 1):
        await say(server, CONSUMER.hello("producer", ["shm"]), str(number).encode())
        await say(server, wire.Fetch("k", "shm"), b"busy")
    assert await say(server, wire.Fetch("k", "shm"), b"quiet") == wire.Refused("say Hello first")
    assert isinstance(await say(server, wire.Fetch("k", "shm"), b"busy"), wire.Lost)


def test_nonces_do_not_repeat():
    assert len({CONSUMER.hello("p", []).nonce for _ in range(100)}) == 100


@pytest.mark.parametrize(
    "data",
    [
        {"version": 1, "key": "k", "lease": "l", "epoch": "e", "rank": 0, "nbytes": 1},
        {"version": VERSION, "key": "k", "lease": "l", "epoch": "e", "rank": -1, "nbytes": 1},
        {"version": VERSION, "key": "k", "lease": "l", "epoch": "e", "rank": 0, "nbytes": 0},
        {"version": VERSION, "key": "k", "lease": "l", "epoch": "e", "rank": 0, "nbytes": 1, "peer": "tcp://x:1"},
        {"version": VERSION, "key": 7, "lease": "l", "epoch": "e", "rank": 0, "nbytes": 1},
        {},
        None,
    ],
)
def test_what_is_no_handle_of_this_version_is_refused(data):
    with pytest.raises(TransferError, match="embedding handle"):
        wire.handle_from_json(data)


def replace_struct(message, **changes):
    return msgspec.structs.replace(message, **changes)
