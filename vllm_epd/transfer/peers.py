# SPDX-License-Identifier: Apache-2.0
"""Where the agents of registered instances are; nothing else is ever connected to."""

import asyncio
from collections.abc import Mapping, Sequence

from vllm_epd.errors import PeerError

WAIT_S = 5.0
"""How long an instance may be heard of by a handle before its registration is."""


class PeerBook:
    """Addresses by epoch and number, as the router has told them. Used in one event loop."""

    def __init__(self, wait_s: float = WAIT_S) -> None:
        """Wait up to `wait_s` for an instance that is not known yet."""
        self._wait_s = wait_s
        self._addresses: dict[str, tuple[str, ...]] = {}
        self._changed = asyncio.Event()

    def set(self, addresses: Mapping[str, Sequence[str]]) -> None:
        """Replace all that is known."""
        self._addresses = {epoch: tuple(each) for epoch, each in addresses.items()}
        self._changed.set()
        self._changed = asyncio.Event()

    def __contains__(self, epoch: str) -> bool:
        return epoch in self._addresses

    async def address(self, epoch: str, agent: int) -> str:
        """The ZeroMQ address of one agent of an instance.

        Raises:
            PeerError: no such instance is registered, or it has no such agent.
        """
        try:
            async with asyncio.timeout(self._wait_s):
                while epoch not in self._addresses:
                    await self._changed.wait()
        except TimeoutError as error:
            raise PeerError(
                f"no registered instance has epoch {epoch!r}; embeddings are taken from those that the router lists"
            ) from error
        addresses = self._addresses[epoch]
        if not 0 <= agent < len(addresses):
            raise PeerError(f"the instance of epoch {epoch!r} has {len(addresses)} agents, none is number {agent}")
        return addresses[agent]
