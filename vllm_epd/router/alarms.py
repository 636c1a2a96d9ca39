# SPDX-License-Identifier: Apache-2.0
"""Calls that must be over in time, and one timer for all of them."""

import asyncio
import math
from time import monotonic

from vllm_epd.router.connection import Connection


class Alarms:
    """Lets connections expire whose call takes too long.

    Nearly every call is over long before, so the timer goes off seldom: it is set for the call that was due first, and
    then looks at those that are left.
    """

    def __init__(self) -> None:
        self._due: dict[Connection, float] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._rings_at = math.inf

    def begin(self, connection: Connection, total_s: float) -> None:
        """A call begins that may take so long."""
        due = self._due[connection] = monotonic() + total_s
        if due < self._rings_at:
            self._set(due)

    def end(self, connection: Connection) -> None:
        """It is over."""
        del self._due[connection]

    def close(self) -> None:
        """Let nothing expire any more."""
        if self._timer is not None:
            self._timer.cancel()

    def _set(self, due: float) -> None:
        self.close()
        self._rings_at = due
        self._timer = asyncio.get_running_loop().call_later(due - monotonic(), self._ring)

    def _ring(self) -> None:
        self._rings_at = math.inf
        now = monotonic()
        for each in [each for each, due in self._due.items() if due <= now]:
            self._due[each] = math.inf
            each.expire()
        if (due := min(self._due.values(), default=math.inf)) < math.inf:
            self._set(due)
