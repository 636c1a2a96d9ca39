# SPDX-License-Identifier: Apache-2.0
"""From whom instances may take embeddings and KV caches: the transfer agents of all that are registered."""

import asyncio
import secrets
from contextlib import suppress
from hashlib import sha256

from vllm_epd.router.instances import InstanceRegistry
from vllm_epd.router.jsonio import JsonObject, encode
from vllm_epd.types import InstanceInfo, kv_epoch


class PeerTable:
    """The addresses of all agents by epoch, and a way to wait for their change.

    The version names what the table says, so that it does not matter which worker of a router is asked; and this start
    of the router, so that whoever has a table of an earlier one is answered at once.
    """

    def __init__(self, registry: InstanceRegistry, run: str | None = None) -> None:
        self._registry = registry
        self._run = run or secrets.token_hex(8)
        self._changed = asyncio.Event()
        self._closed = False
        registry.watch(self._wake)

    def now(self) -> JsonObject:
        """The table and its version."""
        agents = [entry for each in self._registry.listed() for entry in _agents(each.info)]
        peers = {epoch: list(addresses) for epoch, addresses in sorted(agents) if addresses}
        return {"version": f"{self._run}-{sha256(encode(peers)).hexdigest()[:16]}", "peers": peers}

    async def after(self, version: str | None, wait_s: float) -> JsonObject:
        """The table, once it is another than that of `version` or `wait_s` have passed."""
        with suppress(TimeoutError):
            async with asyncio.timeout(wait_s):
                while not self._closed and self.now()["version"] == version:
                    await self._changed.wait()
        return self.now()

    def close(self) -> None:
        """Answer all who wait, and let nobody wait any more."""
        self._closed = True
        self._wake()

    def _wake(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()


def _agents(info: InstanceInfo) -> tuple[tuple[str, tuple[str, ...]], ...]:
    return (info.epoch, info.agents), (kv_epoch(info.epoch), info.kv_agents)
