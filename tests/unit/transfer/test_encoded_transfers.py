# SPDX-License-Identifier: Apache-2.0
"""Compressed and checked embeddings between whole agents, alike and unlike in how they are set up."""

import asyncio
import re
import zlib

import msgspec
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("nixl")

from tests.unit.transfer.parties import PAGE, wait_until  # noqa: E402
from vllm_epd.transfer import checksum as checksum_module  # noqa: E402
from vllm_epd.transfer import wire  # noqa: E402
from vllm_epd.transfer.checksum import checksum  # noqa: E402
from vllm_epd.transfer.codec import encoded_bytes  # noqa: E402
from vllm_epd.transfer.codec_guard import TRIAL_ITEMS  # noqa: E402
from vllm_epd.transfer.connection import Connection  # noqa: E402
from vllm_epd.transfer.packing import Packing  # noqa: E402
from vllm_epd.transfer.pool import whole_pages  # noqa: E402
from vllm_epd.transfer.serve import Server  # noqa: E402

ROWS, WIDTH = 100, 96
DTYPES = [torch.float16, torch.bfloat16, torch.float32]


def packing(codec="none", check="none", dtype=torch.float32):
    return Packing(codec, check, WIDTH * dtype.itemsize, dtype.itemsize)


def embedding(seed=0, dtype=torch.float32):
    return torch.randn(ROWS, WIDTH, generator=torch.Generator().manual_seed(seed)).to(dtype)


def send(producer, consumer, number, tensor):
    """Reserve, put, pull and load, as the two halves of an instance do; the report and what was announced."""
    key = f"k{number}"
    reserved = producer.ask(wire.Reserve([wire.Wanted(number, key, key, tensor.nbytes)]))
    (nbytes,) = reserved.sizes
    producer.store.put(key, tensor, nbytes)
    return consumer.pull(producer.handle(key, nbytes), number), nbytes


def pair(make_party, offered, fetched=None):
    producer, consumer = make_party(packing=offered), make_party(packing=fetched or packing())
    consumer.meet(producer)
    return producer, consumer


def tried(producer, consumer, dtype=torch.float32):
    for number in range(1000, 1000 + TRIAL_ITEMS):
        tensor = embedding(number, dtype)
        assert send(producer, consumer, number, tensor) == (wire.Pulled(number), tensor.nbytes)
        assert torch.equal(consumer.load(number, f"k{number}"), tensor)
        consumer.tell(wire.Drop(number, 1))


@pytest.mark.parametrize("codec", ["int8", "fp8"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("fetched", [packing(), packing("int8"), packing("fp8", "all")], ids=["none", "int8", "fp8"])
def test_what_is_offered_encoded_arrives_in_fewer_bytes(make_party, codec, dtype, fetched):
    producer, consumer = pair(make_party, packing(codec, dtype=dtype), fetched)
    tried(producer, consumer, dtype)
    before, tensor = consumer.state(), embedding(1, dtype)
    report, nbytes = send(producer, consumer, 1, tensor)
    assert report == wire.Pulled(1)
    assert nbytes == encoded_bytes(ROWS, WIDTH, codec)
    landed = consumer.load(1, "k1")
    assert (landed.dtype, landed.shape) == (tensor.dtype, tensor.shape)
    assert not torch.equal(landed, tensor)
    assert torch.allclose(landed.double(), tensor.double(), rtol=0.07, atol=0.02)
    assert consumer.state().fetched_bytes - before.fetched_bytes == nbytes < 0.53 * tensor.nbytes
    assert producer.state().codec_state == "active"


def test_a_transfer_lists_its_items_as_they_are_offered(make_party):
    producer, consumer = pair(make_party, packing("int8"))
    tried(producer, consumer)
    before, first, nbytes = consumer.state(), "k1000", embedding().nbytes
    wanted = [wire.Wanted(1, first, "t:0", nbytes), wire.Wanted(2, "new", "t:1", nbytes)]
    sizes = producer.ask(wire.Reserve(wanted, "t")).sizes
    assert sizes == [nbytes, encoded_bytes(ROWS, WIDTH, "int8")]
    consumer.tell(wire.Expect("t", producer.epoch, 0))
    producer.store.put("new", embedding(2), sizes[1])
    wait_until(lambda: consumer.state().fetched == before.fetched + 1)
    assert consumer.state().fetched_bytes - before.fetched_bytes == sizes[1]
    assert torch.allclose(consumer.store.take("new", torch.device("cpu")), embedding(2), atol=0.03)


def test_a_pool_holds_more_encoded_items_than_it_could_as_they_are(make_party):
    tensor = embedding()
    producer, consumer = make_party(packing=packing("int8")), make_party(pool_bytes=2 * tensor.nbytes + 8192)
    consumer.meet(producer)
    tried(producer, consumer)
    for number in range(6):
        assert send(producer, consumer, number, embedding(number))[0] == wire.Pulled(number)
    for number in range(6):
        assert torch.allclose(consumer.load(number, f"k{number}"), embedding(number), atol=0.03)


@pytest.mark.parametrize("codec", ["int8", "fp8"])
@pytest.mark.parametrize("count", [1, 3])
def test_what_fits_the_pool_only_encoded_goes_so_before_the_verdict(make_party, codec, count):
    pool_bytes = count * whole_pages(encoded_bytes(ROWS, WIDTH, codec), PAGE)
    producer, consumer = make_party(packing=packing(codec), pool_bytes=pool_bytes), make_party(packing=packing())
    consumer.meet(producer)
    wanted = [wire.Wanted(number, f"k{number}", f"k{number}", embedding().nbytes) for number in range(count)]
    assert sum(item.nbytes for item in wanted) > pool_bytes
    reserved = producer.ask(wire.Reserve(wanted))
    assert isinstance(reserved, wire.Reserved), reserved
    for number, nbytes in enumerate(reserved.sizes):
        producer.store.put(f"k{number}", embedding(number), nbytes)
        assert consumer.pull(producer.handle(f"k{number}", nbytes), number) == wire.Pulled(number)
        assert torch.allclose(consumer.load(number, f"k{number}"), embedding(number), rtol=0.07, atol=0.03)
    assert producer.state().codec_state == "trial"


def test_what_fits_only_encoded_and_is_changed_too_much_fails_with_both_numbers_and_so_does_the_next(make_party):
    spiky = torch.ones(ROWS, 256)
    spiky[:, 0] = 260.0
    pool_bytes = whole_pages(encoded_bytes(*spiky.shape, "int8"), PAGE)
    producer = make_party(packing=Packing("int8", row_bytes=1024, number_bytes=4), pool_bytes=pool_bytes)
    consumer = make_party(packing=packing())
    consumer.meet(producer)
    report, _ = send(producer, consumer, 1, spiky)
    assert isinstance(report, wire.PullFailed)
    assert re.search(
        r"'k1' fits the pool only as int8, which changes a row by 0\.\d+ of its norm, more than 0\.0500", report.reason
    )
    assert producer.state().codec_state == "refused"
    producer.store.end_lease("k1")
    refused = producer.ask(wire.Reserve([wire.Wanted(2, "k2", "k2", spiky.nbytes)]))
    assert isinstance(refused, wire.ReserveFailed)
    assert f"1 embeddings of {spiky.nbytes} bytes do not fit" in refused.reason


def test_an_item_that_is_here_in_another_form_is_announced_as_it_lies(make_party):
    producer, consumer = pair(make_party, packing("int8"))
    tried(producer, consumer)
    first, nbytes = "k1000", embedding().nbytes
    wanted = [wire.Wanted(1, first, "again", nbytes), wire.Wanted(2, "new", "new", nbytes)]
    reserved = producer.ask(wire.Reserve(wanted))
    assert reserved.held == [1]
    assert reserved.sizes == [nbytes, encoded_bytes(ROWS, WIDTH, "int8")]
    assert producer.ask(wire.TakeLease(first, "more")) == wire.LeaseTaken(nbytes)
    producer.store.put("new", embedding(2), reserved.sizes[1])
    assert producer.ask(wire.TakeLease("new", "more still")) == wire.LeaseTaken(reserved.sizes[1])


@pytest.mark.parametrize("tried_before", [False, True], ids=["trial", "active"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("codec", ["int8", "fp8"])
def test_a_codec_fails_the_pull_of_what_is_not_finite_before_the_verdict_and_after(
    make_party, codec, value, tried_before
):
    producer, consumer = pair(make_party, packing(codec))
    if tried_before:
        tried(producer, consumer)
    broken = embedding()
    broken[0, 0] = value
    report, nbytes = send(producer, consumer, 1, broken)
    assert nbytes == (encoded_bytes(ROWS, WIDTH, codec) if tried_before else broken.nbytes)
    assert isinstance(report, wire.PullFailed)
    assert report.reason.endswith("the embedding 'k1' is not finite")


@pytest.mark.parametrize("offered", [packing("int8"), packing(check="finite")], ids=["codec", "check"])
def test_what_is_not_finite_fails_its_own_pull_and_no_other(make_party, offered):
    producer, consumer = pair(make_party, offered)
    broken = embedding()
    broken[0, 0] = float("nan")
    report, _ = send(producer, consumer, 1, broken)
    assert isinstance(report, wire.PullFailed)
    assert "the embedding 'k1' is not finite" in report.reason
    assert send(producer, consumer, 2, embedding(2))[0] == wire.Pulled(2)
    producer.store.end_lease("k1")
    producer.store.end_lease("k2")
    wait_until(lambda: producer.state().pinned == 0)


@pytest.mark.parametrize("transport", ["shm", "nixl"])
@pytest.mark.parametrize("codec", ["none", "fp8"])
def test_sound_bytes_pass_the_checksum(make_party, transport, codec):
    producer = make_party(packing=packing(codec, "checksum"), transport=transport)
    consumer = make_party(transport=transport)
    consumer.meet(producer)
    tried(producer, consumer)
    assert send(producer, consumer, 1, embedding(1))[0] == wire.Pulled(1)


def test_bytes_that_change_on_their_way_fail_that_pull_and_no_other(make_party, monkeypatch):
    producer, consumer = pair(make_party, packing(check="checksum"))
    with monkeypatch.context() as patch:
        grant = Server._grant

        async def grant_and_change(self, fetch):
            granted = await grant(self, fetch)
            producer.store.pieces(producer.store.grant(fetch.key, "mine", 60).spans)[0][7] ^= 1
            return granted

        patch.setattr(Server, "_grant", grant_and_change)
        report, _ = send(producer, consumer, 1, embedding(1))
    assert isinstance(report, wire.PullFailed)
    assert "'k1' arrived damaged: checksum" in report.reason
    assert consumer.store.status("k1") is None
    assert send(producer, consumer, 2, embedding(2))[0] == wire.Pulled(2)


def test_only_who_is_told_to_computes_a_checksum(make_party, monkeypatch):
    granted = []
    fetch = Connection.fetch

    async def remember(self, key, *, wait):
        granted.append(await fetch(self, key, wait=wait))
        return granted[-1]

    monkeypatch.setattr(Connection, "fetch", remember)
    for check in ("none", "all"):
        producer, consumer = pair(make_party, packing(check=check), packing(check="all"))
        send(producer, consumer, 1, embedding(1))
    expected = zlib.crc32(embedding(1).numpy().tobytes())
    assert [each.checksum for each in granted] == [None, expected]


def test_a_codec_of_a_later_version_fails_the_pull_and_not_the_agent(make_party, monkeypatch):
    producer, consumer = pair(make_party, packing())
    fetch = Connection.fetch

    async def from_the_future(self, key, *, wait):
        return msgspec.structs.replace(await fetch(self, key, wait=wait), codec="int2")

    with monkeypatch.context() as patch:
        patch.setattr(Connection, "fetch", from_the_future)
        report, _ = send(producer, consumer, 1, embedding(1))
    assert report == wire.PullFailed(1, "unknown codec 'int2', this instance knows none, fp8, int8")
    assert send(producer, consumer, 2, embedding(2))[0] == wire.Pulled(2)


@pytest.mark.parametrize("sizes", [[], [0], [1], [5, 0, 7], [30], [8, 8, 1]])
async def test_a_checksum_is_that_of_all_bytes_in_order(monkeypatch, sizes):
    monkeypatch.setattr(checksum_module, "STEP_BYTES", 8)
    pieces = [torch.randint(0, 256, (size,), dtype=torch.uint8) for size in sizes]
    assert await checksum(pieces) == zlib.crc32(b"".join(piece.numpy().tobytes() for piece in pieces))


async def test_a_checksum_lets_others_have_their_turn(monkeypatch):
    monkeypatch.setattr(checksum_module, "STEP_BYTES", 8)
    turns = []

    async def other():
        for turn in range(5):
            turns.append(turn)
            await asyncio.sleep(0)

    task = asyncio.create_task(other())
    await checksum([torch.zeros(80, dtype=torch.uint8)])
    assert len(turns) == 5
    await task
