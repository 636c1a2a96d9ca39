# SPDX-License-Identifier: Apache-2.0
"""Two agents over real NIXL and real sockets: what is offered arrives, what is foreign is refused."""

import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from uuid import uuid4

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("nixl")

from vllm_epd.connectors.link import AgentLink  # noqa: E402
from vllm_epd.errors import PoolError, TransferError  # noqa: E402
from vllm_epd.roles.address import free_port  # noqa: E402
from vllm_epd.transfer import wire  # noqa: E402
from vllm_epd.transfer.agent import AgentConfig, TransferAgent  # noqa: E402
from vllm_epd.transfer.nixl import NixlTransport  # noqa: E402
from vllm_epd.types import Fingerprint  # noqa: E402

FINGERPRINT = Fingerprint("c", "w", "float32", "p", "0.32.0")
MakeAgent = Callable[..., TransferAgent]


@pytest.fixture
def make_agent() -> Iterator[MakeAgent]:
    agents: list[TransferAgent] = []

    def make(**changes: object) -> TransferAgent:
        config = AgentConfig(
            epoch=uuid4().hex,
            fingerprint=FINGERPRINT,
            command=f"ipc://@epd-test-{uuid4().hex}",
            listen=None,
            pool_bytes=1 << 20,
            page_bytes=4096,
            fetch_timeout_s=5.0,
        )
        agents.append(TransferAgent(replace(config, **changes), NixlTransport))  # type: ignore[arg-type]
        return agents[-1]

    yield make
    for agent in agents:
        agent.close()


@pytest.fixture
def producer(make_agent: MakeAgent) -> TransferAgent:
    return make_agent(listen=f"tcp://127.0.0.1:{free_port('127.0.0.1', 1)}")


def handle_of(
    producer: TransferAgent, key: str, lease: str = "lease", epoch: str | None = None
) -> wire.EmbeddingHandle:
    config = producer._config
    assert config.listen is not None
    return wire.EmbeddingHandle(wire.WIRE_VERSION, key, lease, config.listen, epoch or config.epoch)


def pull(agent: TransferAgent, handle: wire.EmbeddingHandle, number: int = 0) -> wire.Report:
    link = AgentLink([agent._config.command])
    try:
        link.pull(number, handle)
        return wait_for(link.poll)[0]
    finally:
        link.close()


def wait_for(probe: Callable[[], object], seconds: float = 20.0) -> object:
    deadline = time.monotonic() + seconds
    while not (found := probe()):
        assert time.monotonic() < deadline, "nothing within the time limit"
        time.sleep(0.005)
    return found


def refusal(agent: TransferAgent, handle: wire.EmbeddingHandle) -> str:
    report = pull(agent, handle)
    assert isinstance(report, wire.PullFailed)
    return report.reason


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_what_is_offered_arrives_bit_for_bit(
    producer: TransferAgent, make_agent: MakeAgent, dtype: torch.dtype
) -> None:
    consumer = make_agent()
    tensors = {f"k{rows}": torch.randn(rows, 33).to(dtype) for rows in (1, 7, 500)}
    for key, tensor in tensors.items():
        producer.store.put(key, tensor, f"lease-{key}", 30.0, 0.0)
    for number, (key, tensor) in enumerate(tensors.items()):
        report = pull(consumer, handle_of(producer, key), number)
        assert report == wire.Pulled(number, tensor.nbytes)
        assert torch.equal(consumer.landed(number), tensor)
        consumer.drop(number)
        with pytest.raises(KeyError):
            consumer.landed(number)


def test_an_acknowledged_lease_frees_the_item_and_a_second_one_changes_nothing(
    producer: TransferAgent, make_agent: MakeAgent
) -> None:
    consumer = make_agent()
    producer.store.put("k", torch.ones(10, 10), "lease", 30.0, 0.0)
    assert producer.store.state().pinned == 1
    link = AgentLink([consumer._config.command])
    for _ in range(2):
        link.release(handle_of(producer, "k"))
    wait_for(lambda: producer.store.state().pinned == 0)
    link.close()
    assert producer.store.state().items == 1


def test_grants_and_landing_pages_are_given_back(producer: TransferAgent, make_agent: MakeAgent) -> None:
    consumer = make_agent(pool_bytes=64 * 1024)
    producer.store.put("k", torch.ones(100, 100), "lease", 30.0, 0.0)
    for number in range(20):
        assert isinstance(pull(consumer, handle_of(producer, "k"), number), wire.Pulled)
    producer.store.release("lease")
    wait_for(lambda: producer.store.state().pinned == 0)
    assert consumer.store.state().free_bytes == consumer.store.state().capacity_bytes


def test_an_embedding_never_offered_is_lost(producer: TransferAgent, make_agent: MakeAgent) -> None:
    assert "'nope' is not held" in refusal(make_agent(), handle_of(producer, "nope"))


def test_another_epoch_is_another_instance(producer: TransferAgent, make_agent: MakeAgent) -> None:
    producer.store.put("k", torch.ones(4), "lease", 30.0, 0.0)
    assert "restarted" in refusal(make_agent(), handle_of(producer, "k", epoch="older"))


def test_another_fingerprint_is_refused_and_the_difference_named(
    producer: TransferAgent, make_agent: MakeAgent
) -> None:
    producer.store.put("k", torch.ones(4), "lease", 30.0, 0.0)
    foreign = make_agent(fingerprint=replace(FINGERPRINT, weights="other"))
    assert "weights: w != other" in refusal(foreign, handle_of(producer, "k"))


def test_a_producer_that_is_not_there_fails_the_fetch_in_time(make_agent: MakeAgent) -> None:
    consumer = make_agent(fetch_timeout_s=0.5)
    handle = wire.EmbeddingHandle(wire.WIRE_VERSION, "k", "l", "tcp://127.0.0.1:9", "e")
    assert "no answer" in refusal(consumer, handle)


@pytest.mark.parametrize("peer", ["", "nowhere at all", "tcp://127.0.0.1", "tcp://no such host:1"])
def test_what_is_no_address_fails_the_fetch_at_once(make_agent: MakeAgent, peer: str) -> None:
    handle = wire.EmbeddingHandle(wire.WIRE_VERSION, "k", "l", peer, "e")
    assert "no address" in refusal(make_agent(), handle)


def test_a_full_pool_waits_for_its_consumers_and_then_gives_up(producer: TransferAgent) -> None:
    producer.store.put("a", torch.zeros(1 << 18), "lease-a", 30.0, 0.0)
    with pytest.raises(PoolError, match="no room"):
        producer.store.put("b", torch.zeros(1), "lease-b", 30.0, 0.1)
    producer.store.release("lease-a")
    producer.store.put("b", torch.zeros(1), "lease-b", 30.0, 0.1)
    assert not producer.store.lease("a", "late", 1.0)


def test_an_address_in_use_is_an_error_at_start(producer: TransferAgent, make_agent: MakeAgent) -> None:
    with pytest.raises(TransferError, match="cannot bind"):
        make_agent(listen=producer._config.listen)


def test_garbage_from_a_peer_is_refused_and_the_agent_lives(producer: TransferAgent, make_agent: MakeAgent) -> None:
    import zmq

    producer.store.put("k", torch.ones(4), "lease", 30.0, 0.0)
    with zmq.Context() as context, context.socket(zmq.DEALER) as socket:
        socket.connect(producer._config.listen)
        for frames in (
            [b"1", b"\x00garbage"],
            [b"2", wire.encode(wire.Fetch("k"))],
            [b"only"],
            [b"a", b"b", b"c"],
        ):
            socket.send_multipart(frames)
        answers = {}
        for _ in range(2):
            request_id, frame = socket.recv_multipart()
            answers[request_id] = wire.decode_reply(frame)
    assert isinstance(answers[b"1"], wire.Refused)
    assert answers[b"2"] == wire.Refused("say Hello first")
    assert isinstance(pull(make_agent(), handle_of(producer, "k")), wire.Pulled)
