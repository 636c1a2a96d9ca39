# SPDX-License-Identifier: Apache-2.0
"""The scheduler half's line to the transfer agents of its own workers."""

import logging
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import zmq

from vllm_epd.connectors.landing import Drop
from vllm_epd.errors import TransferError
from vllm_epd.transfer import wire

logger = logging.getLogger(__name__)

News = wire.Pulled | wire.PullFailed | wire.Reserved | wire.ReserveFailed
Socket = zmq.Socket[bytes]


@dataclass(slots=True)
class _Reservation:
    """One that has not been settled: how many agents have not answered yet, and what the others hold already."""

    items: Sequence[wire.Wanted]
    transfer: str
    unanswered: int
    held: set[int] = field(default_factory=set)


class AgentLink:
    """Sends commands, collects reports; never waits but in `poll`.

    Every tensor-parallel rank pulls for itself: an item has landed when all of them say so, and has failed when one
    does. Where items are whole, the first rank alone offers them, and gives leases back; where each rank has a part of
    every item, each does so for its part: there is room when all have some, and none when one has none.
    """

    def __init__(self, addresses: Sequence[str], *, sharded: bool = False) -> None:
        """Connect to the agents, which may start later.

        Args:
            addresses: of the agents, in order of rank.
            sharded: whether each of them has a part of every item.
        """
        self._context = zmq.Context()
        self._sockets = [self._connect(address) for address in addresses]
        self._offering = self._sockets if sharded else self._sockets[:1]
        self._poller = zmq.Poller()
        for socket in self._sockets:
            self._poller.register(socket, zmq.POLLIN)
        self._pending: dict[int, int] = {}
        self._failed: dict[int, str] = {}
        self._reserving: dict[int, _Reservation] = {}
        self._unanswered = 0

    def pull(self, landing: int, handle: wire.EmbeddingHandle) -> None:
        """Have every agent fetch `handle` as `landing`; `poll` tells when they have."""
        self._pending[landing] = len(self._sockets)
        self._unanswered += len(self._sockets)
        _tell(self._sockets, wire.Pull(landing, handle))

    def drop(self, drop: Drop) -> None:
        """Have every agent let go of a landing; nothing more is heard of it."""
        self._pending.pop(drop.number, None)
        self._failed.pop(drop.number, None)
        _tell(self._sockets, wire.Drop(drop.number, drop.loads))

    def reserve(self, items: Sequence[wire.Wanted], transfer: str = "") -> None:
        """Have room made for all of `items`; `poll` tells when there is, by the landing of the first."""
        self._reserving[items[0].landing] = _Reservation(items, transfer, len(self._offering))
        self._unanswered += len(self._offering)
        _tell(self._offering, wire.Reserve(list(items), transfer))

    def withdraw(self, items: Sequence[wire.Wanted]) -> None:
        """Nobody comes for what was reserved as `items`; nothing more is heard of it."""
        unread = self._reserving.pop(items[0].landing, None) is not None
        landings = [item.landing for item in items] if unread else []
        _tell(self._offering, wire.Withdraw([item.lease for item in items], landings))

    def release(self, handle: wire.EmbeddingHandle) -> None:
        """Have the lease of `handle` given back to its producer."""
        _tell(self._offering, wire.Release(handle))

    def forget(self, transfer: str) -> None:
        """Have every agent let go of what it has fetched of `transfer` without being asked, and of what it offers."""
        _tell(self._sockets, wire.Forget(transfer))

    def poll(self, wait_ms: int = 0) -> list[News]:
        """What has come of pulls and reservations since the last call; waits for the first news up to `wait_ms`."""
        deadline = time.monotonic() + wait_ms / 1000
        news = self._news()
        while not news and self._unanswered and (left := deadline - time.monotonic()) > 0:
            self._poller.poll(math.ceil(1000 * left))
            news = self._news()
        return news

    def close(self) -> None:
        """Close the sockets; a second call does nothing."""
        self._context.destroy(linger=0)

    def _news(self) -> list[News]:
        if not self._unanswered:
            return []
        news: list[News] = []
        for report in self._reports():
            self._unanswered -= 1
            match report:
                case wire.Pulled() | wire.PullFailed():
                    news += self._pulled(report)
                case wire.Reserved():
                    news += self._reserved(report)
                case wire.ReserveFailed() if report.landing in self._reserving:
                    self._take_back(self._reserving[report.landing])
                    news.append(report)
        return news

    def _pulled(self, report: wire.Pulled | wire.PullFailed) -> list[News]:
        """The report that all agents together make, once the last of them has reported.

        Where one has failed, nobody will load what the others have brought in.
        """
        landing = report.landing
        if landing not in self._pending:
            return []
        if isinstance(report, wire.PullFailed):
            self._failed[landing] = report.reason
        self._pending[landing] -= 1
        if self._pending[landing]:
            return []
        del self._pending[landing]
        reason = self._failed.pop(landing, None)
        if reason is None:
            return [wire.Pulled(landing)]
        self.drop(Drop(landing, 0))
        return [wire.PullFailed(landing, reason)]

    def _reserved(self, report: wire.Reserved) -> list[News]:
        """The report that all agents together make, once the last of them has reported: any of them may hold an item.

        What one of them holds may be dropped with all; the parts of an item are equally large.
        """
        asked = self._reserving.get(report.landing)
        if asked is None:
            return []
        asked.held |= set(report.held)
        asked.unanswered -= 1
        if asked.unanswered:
            return []
        del self._reserving[report.landing]
        return [wire.Reserved(report.landing, sorted(asked.held), report.sizes)]

    def _take_back(self, asked: _Reservation) -> None:
        """One agent has no room: the others need none, and nobody is to wait for what they have listed."""
        self.withdraw(asked.items)
        if asked.transfer:
            self.forget(asked.transfer)

    def _connect(self, address: str) -> Socket:
        socket = self._context.socket(zmq.DEALER)
        socket.connect(address)
        return socket

    def _reports(self) -> list[wire.Report]:
        reports: list[wire.Report] = []
        for socket in self._sockets:
            while socket.poll(0):
                try:
                    reports.append(wire.decode_report(socket.recv()))
                except TransferError as error:
                    logger.error("ignored a report: %s", error)
        return reports


def _tell(sockets: Sequence[Socket], command: wire.Command) -> None:
    frame = wire.encode(command)
    for socket in sockets:
        socket.send(frame)
