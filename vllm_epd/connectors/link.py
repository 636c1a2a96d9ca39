# SPDX-License-Identifier: Apache-2.0
"""The scheduler half's line to the transfer agents of its own workers."""

import logging
from collections.abc import Sequence

import zmq

from vllm_epd.errors import TransferError
from vllm_epd.transfer import wire

logger = logging.getLogger(__name__)


class AgentLink:
    """Sends commands, collects reports; never waits.

    Every tensor-parallel rank pulls for itself: an embedding has landed when all of them say so, and has failed when
    one does.
    """

    def __init__(self, addresses: Sequence[str]) -> None:
        """Connect to the agents at `addresses`; they may start later."""
        self._context = zmq.Context()
        self._sockets = [self._connect(address) for address in addresses]
        self._pending: dict[int, int] = {}
        self._failed: dict[int, str] = {}

    def pull(self, landing: int, handle: wire.EmbeddingHandle) -> None:
        """Have every agent fetch `handle` as `landing`; `poll` tells when they have."""
        self._pending[landing] = len(self._sockets)
        for socket in self._sockets:
            socket.send(wire.encode(wire.Pull(landing, handle)))

    def release(self, handle: wire.EmbeddingHandle) -> None:
        """Have one agent give the lease of `handle` back to its producer."""
        self._sockets[0].send(wire.encode(wire.Release(handle)))

    def poll(self) -> list[wire.Pulled | wire.PullFailed]:
        """What has landed or failed on all agents since the last call."""
        if not self._pending:
            return []
        done: list[wire.Pulled | wire.PullFailed] = []
        for report in self._reports():
            if isinstance(report, wire.PoolState):
                continue
            if isinstance(report, wire.PullFailed):
                self._failed[report.landing] = report.reason
            self._pending[report.landing] = self._pending.get(report.landing, 1) - 1
            if self._pending[report.landing] > 0:
                continue
            del self._pending[report.landing]
            reason = self._failed.pop(report.landing, None)
            done.append(report if reason is None else wire.PullFailed(report.landing, reason))
        return done

    def close(self) -> None:
        """Close the sockets; a second call does nothing."""
        self._context.destroy(linger=0)

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
