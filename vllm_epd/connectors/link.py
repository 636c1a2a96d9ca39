# SPDX-License-Identifier: Apache-2.0
"""The scheduler half's line to the transfer agents of its own workers."""

import logging
from collections.abc import Sequence

import zmq

from vllm_epd.connectors.landing import Drop
from vllm_epd.errors import TransferError
from vllm_epd.transfer import wire

logger = logging.getLogger(__name__)

News = wire.Pulled | wire.PullFailed | wire.Reserved | wire.ReserveFailed


class AgentLink:
    """Sends commands, collects reports; never waits.

    Every tensor-parallel rank pulls for itself: an embedding has landed when all of them say so, and has failed when
    one does. The first rank alone offers, and gives leases back.
    """

    def __init__(self, addresses: Sequence[str]) -> None:
        """Connect to the agents at `addresses`, in order of rank; they may start later."""
        self._context = zmq.Context()
        self._sockets = [self._connect(address) for address in addresses]
        self._pending: dict[int, int] = {}
        self._failed: dict[int, str] = {}
        self._reserving: set[int] = set()
        self._unanswered = 0

    def pull(self, landing: int, handle: wire.EmbeddingHandle) -> None:
        """Have every agent fetch `handle` as `landing`; `poll` tells when they have."""
        self._pending[landing] = len(self._sockets)
        self._unanswered += len(self._sockets)
        self._tell_all(wire.Pull(landing, handle))

    def drop(self, drop: Drop) -> None:
        """Have every agent let go of a landing; nothing more is heard of it."""
        self._pending.pop(drop.number, None)
        self._failed.pop(drop.number, None)
        self._tell_all(wire.Drop(drop.number, drop.loads))

    def reserve(self, items: Sequence[wire.Wanted], transfer: str = "") -> None:
        """Have room made for all of `items`; `poll` tells when there is, by the landing of the first."""
        self._reserving.add(items[0].landing)
        self._unanswered += 1
        self._tell_first(wire.Reserve(list(items), transfer))

    def withdraw(self, items: Sequence[wire.Wanted]) -> None:
        """Nobody comes for what was reserved as `items`; nothing more is heard of it."""
        unread = items[0].landing in self._reserving
        self._reserving.discard(items[0].landing)
        landings = [item.landing for item in items] if unread else []
        self._tell_first(wire.Withdraw([item.lease for item in items], landings))

    def release(self, handle: wire.EmbeddingHandle) -> None:
        """Have the lease of `handle` given back to its producer."""
        self._tell_first(wire.Release(handle))

    def forget(self, transfer: str) -> None:
        """Have every agent let go of what it has fetched of `transfer` without being asked."""
        self._tell_all(wire.Forget(transfer))

    def poll(self, wait_ms: int = 0) -> list[News]:
        """What has come of pulls and reservations since the last call; waits for the first word up to `wait_ms`."""
        if not self._unanswered:
            return []
        if wait_ms:
            self._sockets[0].poll(wait_ms)
        news: list[News] = []
        for report in self._reports():
            self._unanswered -= 1
            match report:
                case wire.Pulled() | wire.PullFailed():
                    news += self._settled(report)
                case wire.Reserved() | wire.ReserveFailed() if report.landing in self._reserving:
                    self._reserving.discard(report.landing)
                    news.append(report)
        return news

    def close(self) -> None:
        """Close the sockets; a second call does nothing."""
        self._context.destroy(linger=0)

    def _settled(self, report: wire.Pulled | wire.PullFailed) -> list[News]:
        """The report that all agents together make, once the last of them has reported."""
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
        return [wire.Pulled(landing) if reason is None else wire.PullFailed(landing, reason)]

    def _tell_all(self, command: wire.Command) -> None:
        for socket in self._sockets:
            socket.send(wire.encode(command))

    def _tell_first(self, command: wire.Command) -> None:
        self._sockets[0].send(wire.encode(command))

    def _connect(self, address: str) -> zmq.Socket[bytes]:
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
