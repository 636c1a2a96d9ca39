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
    agents.say(0, wire.Reserved(5, [5], [8]))
    assert news(link, 1) == [wire.Reserved(5, [5], [8])]
    assert not agents.sockets[1].poll(50)


def test_the_agent_undoes_what_was_withdrawn_before_its_answer_was_read(link: AgentLink, agents: Agents) -> None:
    """Nobody may ever read it: an idle scheduler does not ask for news."""
    items = [wire.Wanted(5, "k", "lease", 8), wire.Wanted(6, "l", "other", 8)]
    link.reserve(items)
    link.withdraw(items)
    agents.heard(0)
    assert agents.heard(0) == wire.Withdraw(["lease", "other"], [5, 6])
    agents.say(0, wire.Reserved(5, [5], [8]))
    time.sleep(0.05)
    assert link.poll() == []


def test_what_was_adopted_is_not_undone_by_the_agent(link: AgentLink, agents: Agents) -> None:
    items = [wire.Wanted(5, "k", "lease", 8)]
    link.reserve(items)
    agents.heard(0)
    agents.say(0, wire.Reserved(5, [5], [8]))
    assert news(link, 1) == [wire.Reserved(5, [5], [8])]
    link.withdraw(items)
    assert agents.heard(0) == wire.Withdraw(["lease"])


def test_nonsense_is_ignored(link: AgentLink, agents: Agents) -> None:
    link.pull(3, HANDLE)
    agents.heard(0), agents.heard(1)
    for rank in (0, 1):
        agents.say(rank, b"\xff")
        agents.say(rank, wire.Pulled(3))
    assert news(link, 1) == [wire.Pulled(3)]
