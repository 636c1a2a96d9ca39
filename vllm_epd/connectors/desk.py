# SPDX-License-Identifier: Apache-2.0
"""Where the scheduler halves and the agents meet: one book, one line, one way for news."""

import logging
import math
import time
from collections.abc import Callable, Sequence
from typing import TypeVar

from vllm_epd.connectors.landing import LandingBook
from vllm_epd.connectors.link import AgentLink
from vllm_epd.connectors.metadata import Load, Merge
from vllm_epd.transfer import wire

logger = logging.getLogger(__name__)

T = TypeVar("T")

ANSWER_S = 0.001
"""How long a scheduler waits for its agents when it looks at a request for the first time.

What is here already, or has only to be reserved, is said to be within less time than an idle engine sleeps.
"""

OnReserved = Callable[[wire.Reserved | wire.ReserveFailed], None]


class Desk:
    """Shared by the producing and the consuming half of one scheduler."""

    def __init__(self, link: AgentLink) -> None:
        """Command the agents behind `link`."""
        self.link = link
        self.book = LandingBook()
        self._asked: dict[int, OnReserved] = {}
        self._unavailable: set[str] = set()
        self._looked_at: set[str] = set()

    def pull(self, handle: wire.EmbeddingHandle, request_id: str) -> None:
        """Have what `handle` names here for a request; once, however many ask."""
        number = self.book.use(handle.key, request_id)
        if number is not None:
            self.link.pull(number, handle)

    def pull_all(self, key: str, handles: Sequence[wire.EmbeddingHandle], request_id: str) -> None:
        """Have item `key` here for a request: by its one handle, or in parts by theirs, in order."""
        if len(handles) > 1:
            self.book.split(key, len(handles), request_id)
        for handle in handles:
            self.pull(handle, request_id)

    def reserve(self, items: Sequence[wire.Wanted], on_reserved: OnReserved, transfer: str = "") -> None:
        """Ask for room for `items` together; `on_reserved` gets the answer during a later `collect`.

        A consumer may ask for the list of `items` under the name `transfer`, where one is given.
        """
        self._asked[items[0].landing] = on_reserved
        self.link.reserve(items, transfer)

    def withdraw(self, items: Sequence[wire.Wanted]) -> None:
        """Nobody comes for `items`, whether there is room for them yet or not."""
        self._asked.pop(items[0].landing, None)
        self.link.withdraw(items)

    def collect(self, wait_ms: int = 0) -> bool:
        """Enter what the agents have reported; waits for the first word up to `wait_ms`. Whether there was any."""
        reports = self.link.poll(wait_ms)
        for report in reports:
            match report:
                case wire.Pulled():
                    self.book.landed(report.landing)
                case wire.PullFailed():
                    self.book.failed(report.landing, report.reason)
                case _:
                    self._asked.pop(report.landing)(report)
        return bool(reports)

    def collect_for(self, request_id: str, look: Callable[[], T | None]) -> T | None:
        """What `look` tells of a request, None while nothing can be told; the first time it is given a moment."""
        self.collect()
        found = look()
        if found is None and request_id not in self._looked_at:
            self._looked_at.add(request_id)
            end = time.monotonic() + ANSWER_S
            while found is None and (left := end - time.monotonic()) > 0 and self.collect(math.ceil(1000 * left)):
                found = look()
        return found

    def give_up(self, request_id: str, reason: str) -> None:
        """A request cannot be served; the scheduler is told with the next step."""
        logger.error("request %s fails: embedding unavailable: %s", request_id, reason)
        self._unavailable.add(request_id)

    def has_given_up(self, request_id: str) -> bool:
        """Whether a request cannot be served."""
        return request_id in self._unavailable

    def take_unavailable(self) -> set[str]:
        """Requests that cannot be served; each is told once."""
        taken, self._unavailable = self._unavailable, set()
        return taken

    def take_loads(self) -> tuple[Load, ...]:
        """Loads for this step."""
        return self.book.take_loads()

    def take_merges(self) -> tuple[Merge, ...]:
        """Items in parts to be loaded in this step."""
        return self.book.take_merges()

    def leave(self, request_id: str) -> None:
        """A request has ended in whatever way: nothing is held here for it any more."""
        self._unavailable.discard(request_id)
        self._looked_at.discard(request_id)
        self.book.leave(request_id)
        self.send_drops()

    def send_drops(self) -> None:
        """Tell the agents what is needed no more."""
        for drop in self.book.take_drops():
            self.link.drop(drop)

    def close(self) -> None:
        """Close the line to the agents."""
        self.link.close()
