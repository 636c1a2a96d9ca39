# SPDX-License-Identifier: Apache-2.0
"""First come, first served: requests that wait until encode instances have room for them."""

import asyncio
from collections import deque
from collections.abc import Callable

from vllm_epd.errors import NoInstanceError
from vllm_epd.types import Fingerprint

_RETRY_AFTER_S = 1


class AdmissionQueue:
    """One queue for each fingerprint; only the request in front tries to get in."""

    def __init__(self) -> None:
        self._queues: dict[Fingerprint, deque[asyncio.Event]] = {}

    @property
    def waiting(self) -> int:
        """Requests that wait, of all fingerprints."""
        return sum(len(queue) for queue in self._queues.values())

    async def enter(self, group: Fingerprint, attempt: Callable[[], bool], timeout_s: float) -> None:
        """Return once `attempt` has succeeded, which is tried whenever `wake` says that things have changed.

        Raises:
            NoInstanceError: it has not for `timeout_s`.
        """
        if group not in self._queues and attempt():
            return
        try:
            async with asyncio.timeout(timeout_s):
                await self._wait(group, attempt)
        except TimeoutError as error:
            raise NoInstanceError(
                f"the pools of the encode instances have been full for {timeout_s:g} s", retry_after_s=_RETRY_AFTER_S
            ) from error

    def wake(self, group: Fingerprint) -> None:
        """Let the request in front try again."""
        if group in self._queues:
            self._queues[group][0].set()

    def wake_all(self) -> None:
        """The same for all fingerprints."""
        for group in self._queues:
            self.wake(group)

    async def _wait(self, group: Fingerprint, attempt: Callable[[], bool]) -> None:
        turn = asyncio.Event()
        queue = self._queues.setdefault(group, deque())
        queue.append(turn)
        try:
            while True:
                await turn.wait()
                turn.clear()
                if attempt():
                    return
        finally:
            queue.remove(turn)
            if not queue:
                del self._queues[group]
            self.wake(group)
