# SPDX-License-Identifier: Apache-2.0
"""A line to the agents that the test plays."""

from collections.abc import Sequence
from typing import Any

from vllm_epd.connectors.landing import Drop
from vllm_epd.transfer import wire


class FakeLink:
    """Records commands; the test says what is reported: `reports` at once, one of `late` to each who waits."""

    def __init__(self) -> None:
        self.pulled: list[tuple[int, str]] = []
        self.released: list[str] = []
        self.reserved: list[list[wire.Wanted]] = []
        self.transfers: list[str] = []
        self.withdrawn: list[str] = []
        self.dropped: list[Drop] = []
        self.forgotten: list[str] = []
        self.reports: list[Any] = []
        self.late: list[Any] = []
        self.waits: list[int] = []

    def pull(self, landing: int, handle: wire.EmbeddingHandle) -> None:
        self.pulled.append((landing, handle.key))

    def release(self, handle: wire.EmbeddingHandle) -> None:
        self.released.append(handle.lease)

    def reserve(self, items: Sequence[wire.Wanted], transfer: str = "") -> None:
        self.reserved.append(list(items))
        self.transfers.append(transfer)

    def withdraw(self, items: Sequence[wire.Wanted]) -> None:
        self.withdrawn += [item.lease for item in items]

    def drop(self, drop: Drop) -> None:
        self.dropped.append(drop)

    def forget(self, transfer: str) -> None:
        self.forgotten.append(transfer)

    def poll(self, wait_ms: int = 0) -> list[Any]:
        self.waits.append(wait_ms)
        if wait_ms and not self.reports and self.late:
            return [self.late.pop(0)]
        reports, self.reports = self.reports, []
        return reports
