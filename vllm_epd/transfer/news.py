# SPDX-License-Identifier: Apache-2.0
"""Wakes those who wait in an event loop when another thread has changed something."""

import asyncio
import contextlib
from collections.abc import Callable


class News:
    """Told by any thread that something is different now; costs nothing where nobody waits.

    A waiter that looked again and again would take the interpreter's lock from the thread that it waits for.
    """

    def __init__(self) -> None:
        self._loop: asyncio.AbstractEventLoop | None = None
        self._changed = asyncio.Event()
        self._waiting = 0

    def tell(self) -> None:
        """Have all who wait look again; after the change."""
        if self._waiting and self._loop is not None:
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody is left who could look
                self._loop.call_soon_threadsafe(self._wake)

    async def until(self, condition: Callable[[], bool], within_s: float | None = None) -> bool:
        """Return when `condition` holds, or after `within_s`; whether it holds. All waiters share one event loop."""
        self._loop = asyncio.get_running_loop()
        self._waiting += 1
        try:
            async with asyncio.timeout(within_s):
                while not condition():
                    await self._changed.wait()
        except TimeoutError:
            return condition()
        finally:
            self._waiting -= 1
        return True

    def _wake(self) -> None:
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()
