# SPDX-License-Identifier: Apache-2.0
"""The line to the agents, with sockets in the agents' place."""

import time
from collections.abc import Iterator
from uuid import uuid4

import pytest
import zmq

from vllm_epd.connectors.landing import Drop
from vllm_epd.connectors.link import AgentLink, News
from vllm_epd.transfer import wire

HANDLE = wire.EmbeddingHandle(wire.WIRE_VERSION, "k", "lease", "epoch", 0, 8)


class Agents:
    """Two tensor-parallel ranks that say what the test has them say."""

    def __init__(self) -> None:
        self.context = zmq.Context()
        self.addresses = [f"ipc://@epd-test-{uuid4().hex}" for _ in range(2)]
        self.sockets = [self.context.socket(zmq.ROUTER) for _ in self.addresses]
        for socket, address in zip(self.sockets, self.addresses, strict=True):
            socket.bind(address)
        self.senders = [b"", b""]

    def heard(self, rank: int) -> wire.Command:
        assert self.sockets[rank].poll(5000)
        self.senders[rank], frame = self.sockets[rank].recv_multipart()
        return wire.decode_command(frame)

    def say(self, rank: int, report: wire.Report | bytes) -> None:
        frame = report if isinstance(report, bytes) else wire.encode(report)
        self.sockets[rank].send_multipart([self.senders[rank], frame])


@pytest.fixture
def agents() -> Iterator[Agents]:
    made = Agents()
    yield made
    made.context.destroy(linger=0)


@pytest.fixture
def link(agents: Agents) -> Iterator[AgentLink]:
    made = AgentLink(agents.addresses)
    yield made
    made.close()


def news(link: AgentLink, count: int) -> list[News]:
    found: list[News] = []
    deadline = time.monotonic() + 5
    while len(found) < count and time.monotonic() < deadline:
        found += link.poll()
    return found


def test_an_embedding_has_landed_when_every_rank_says_so(link: AgentLink, agents: Agents) -> None:
    link.pull(3, HANDLE)
    assert agents.heard(0) == agents.heard(1) == wire.Pull(3, HANDLE)
    agents.say(0, wire.Pulled(3))
    time.sleep(0.05)
    assert link.poll() == []
    agents.say(1, wire.Pulled(3))
    assert news(link, 1) == [wire.Pulled(3)]
    assert link.poll() == []


def test_it_has_failed_when_one_rank_says_so(link: AgentLink, agents: Agents) -> None:
    link.pull(3, HANDLE)
    agents.heard(0), agents.heard(1)
    agents.say(0, wire.PullFailed(3, "gone"))
    agents.say(1, wire.Pulled(3))
    assert news(link, 1) == [wire.PullFailed(3, "gone")]


def test_nothing_is_heard_of_what_was_dropped(link: AgentLink, agents: Agents) -> None:
    link.pull(3, HANDLE)
    link.pull(4, HANDLE)
    link.drop(Drop(3, 1))
    assert [agents.heard(0) for _ in range(3)][-1] == wire.Drop(3, 1)
    assert [agents.heard(1) for _ in range(3)][-1] == wire.Drop(3, 1)
    for rank in (0, 1):
        agents.say(rank, wire.PullFailed(3, "dropped"))
        agents.say(rank, wire.Pulled(4))
    assert news(link, 1) == [wire.Pulled(4)]


def test_the_first_rank_alone_makes_room_and_gives_leases_back(link: AgentLink, agents: Agents) -> None:
    items = [wire.Wanted(5, "k", "lease", 8)]
    link.reserve(items)
    link.release(HANDLE)
    assert agents.heard(0) == wire.Reserve(items)
    assert agents.heard(0) == wire.Release(HANDLE)
    agents.say(0, wire.Reserved(5, [5]))
    assert news(link, 1) == [wire.Reserved(5, [5])]
    assert not agents.sockets[1].poll(50)


def test_an_answer_to_what_was_withdrawn_is_undone(link: AgentLink, agents: Agents) -> None:
    link.reserve([wire.Wanted(5, "k", "lease", 8)])
    link.withdraw(5, ["lease"])
    agents.heard(0)
    assert agents.heard(0) == wire.Withdraw(["lease"])
    agents.say(0, wire.Reserved(5, [5]))
    deadline = time.monotonic() + 5
    while not agents.sockets[0].poll(10) and time.monotonic() < deadline:
        assert link.poll() == []
    assert agents.heard(0) == wire.Drop(5, 0)


def test_nonsense_is_ignored(link: AgentLink, agents: Agents) -> None:
    link.pull(3, HANDLE)
    agents.heard(0), agents.heard(1)
    for rank in (0, 1):
        agents.say(rank, b"\xff")
        agents.say(rank, wire.Pulled(3))
    assert news(link, 1) == [wire.Pulled(3)]
