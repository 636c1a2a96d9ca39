# SPDX-License-Identifier: Apache-2.0
"""The line to the agents, with sockets in the agents' place."""

import threading
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
    assert agents.heard(0) == agents.heard(1) == wire.Drop(3, 0), "what the other rank has brought in is not kept"


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


@pytest.fixture
def sharded(agents: Agents) -> Iterator[AgentLink]:
    made = AgentLink(agents.addresses, sharded=True)
    yield made
    made.close()


ITEMS = [wire.Wanted(5, "k", "lease", 8), wire.Wanted(6, "l", "other", 8)]


def told(agents: Agents, *commands: wire.Command) -> None:
    """Both ranks have heard these commands."""
    for rank in (0, 1):
        assert [agents.heard(rank) for _ in commands] == list(commands)
        assert not agents.sockets[rank].poll(20)


def test_there_is_room_for_all_parts_when_every_rank_says_so(sharded: AgentLink, agents: Agents) -> None:
    sharded.reserve(ITEMS, "t")
    told(agents, wire.Reserve(ITEMS, "t"))
    agents.say(1, wire.Reserved(5, [6], [8, 8]))
    time.sleep(0.05)
    assert sharded.poll() == []
    agents.say(0, wire.Reserved(5, [5], [8, 8]))
    assert news(sharded, 1) == [wire.Reserved(5, [5, 6], [8, 8])]
    sharded.withdraw(ITEMS)
    told(agents, wire.Withdraw(["lease", "other"]))


@pytest.mark.parametrize("failing", [0, 1])
def test_what_one_rank_has_no_room_for_is_taken_back_on_all(sharded: AgentLink, agents: Agents, failing: int) -> None:
    sharded.reserve(ITEMS, "t")
    told(agents, wire.Reserve(ITEMS, "t"))
    agents.say(1 - failing, wire.Reserved(5, [5], [8, 8]))
    agents.say(failing, wire.ReserveFailed(5, "full"))
    assert news(sharded, 1) == [wire.ReserveFailed(5, "full")]
    told(agents, wire.Withdraw(["lease", "other"], [5, 6]), wire.Forget("t"))
    assert sharded.poll() == []


def test_a_rank_that_has_no_room_is_enough_however_late_the_others_answer(sharded: AgentLink, agents: Agents) -> None:
    sharded.reserve(ITEMS)
    told(agents, wire.Reserve(ITEMS))
    agents.say(0, wire.ReserveFailed(5, "full"))
    assert news(sharded, 1) == [wire.ReserveFailed(5, "full")]
    told(agents, wire.Withdraw(["lease", "other"], [5, 6]))
    agents.say(1, wire.ReserveFailed(5, "withdrawn"))
    sharded.pull(7, HANDLE)
    told(agents, wire.Pull(7, HANDLE))
    for rank in (0, 1):
        agents.say(rank, wire.Pulled(7))
    assert news(sharded, 1) == [wire.Pulled(7)]


def test_what_is_withdrawn_while_one_rank_makes_room_is_undone_on_all(sharded: AgentLink, agents: Agents) -> None:
    sharded.reserve(ITEMS)
    told(agents, wire.Reserve(ITEMS))
    agents.say(0, wire.Reserved(5, [5], [8, 8]))
    assert sharded.poll(20) == []
    sharded.withdraw(ITEMS)
    told(agents, wire.Withdraw(["lease", "other"], [5, 6]))
    agents.say(1, wire.Reserved(5, [], [8, 8]))
    time.sleep(0.05)
    assert sharded.poll() == []


def test_every_rank_gives_the_lease_of_its_part_back(sharded: AgentLink, agents: Agents) -> None:
    sharded.pull(3, HANDLE)
    sharded.release(HANDLE)
    told(agents, wire.Pull(3, HANDLE), wire.Release(HANDLE))


def test_waiting_ends_with_the_last_ranks_report(sharded: AgentLink, agents: Agents) -> None:
    sharded.pull(3, HANDLE)
    told(agents, wire.Pull(3, HANDLE))
    agents.say(0, wire.Pulled(3))
    late = threading.Timer(0.05, agents.say, (1, wire.Pulled(3)))
    late.start()
    begun = time.monotonic()
    assert sharded.poll(5000) == [wire.Pulled(3)]
    assert time.monotonic() - begun < 4
    late.join()
