# SPDX-License-Identifier: Apache-2.0
"""One task that waits until something has happened on a connection."""

import asyncio


class Bell:
    """Wakes the task that waits for it, if there is one; there is one at most."""

    __slots__ = ("_rung",)

    def __init__(self) -> None:
        self._rung: asyncio.Future[None] | None = None

    async def wait(self) -> None:
        """Return when it rings next."""
        self._rung = asyncio.get_running_loop().create_future()
        try:
            await self._rung
        finally:
            self._rung = None

    def ring(self) -> None:
        """Something has happened."""
        if self._rung is not None and not self._rung.done():
            self._rung.set_result(None)
