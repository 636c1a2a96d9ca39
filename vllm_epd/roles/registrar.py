# SPDX-License-Identifier: Apache-2.0
"""Keeps the router told that this instance is there: register when ready, heartbeat, register again when unknown."""

import asyncio
import contextlib
import logging
import os
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from urllib.parse import quote

import aiohttp

from vllm_epd.types import TOKEN_ENV, InstanceInfo

logger = logging.getLogger(__name__)

Peers = Mapping[str, Sequence[str]]

PEERS_WAIT_S = 20
READY_POLL_S = 0.2
RETRY_S = 1.0
TIMEOUT = aiohttp.ClientTimeout(total=5)


@dataclass(frozen=True, slots=True)
class RouterAnswer:
    """What the router asks of a registered instance."""

    heartbeat_s: float


class Registrar:
    """One task that runs as long as the instance serves."""

    def __init__(
        self,
        router: str,
        health_url: str,
        info: Callable[[], InstanceInfo],
        set_peers: Callable[[Peers], Awaitable[None]],
    ) -> None:
        """Keep registered at `router`.

        Args:
            router: its base URL.
            health_url: of this instance; it registers once that answers 200.
            info: what this instance says of itself, asked at each beat.
            set_peers: gets the agents of all registered instances by epoch, whenever these change.
        """
        self._router = router.rstrip("/")
        self._health_url = health_url
        self._info = info
        self._set_peers = set_peers
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Start the task in the running loop."""
        self._task = asyncio.create_task(self._run(), name="epd-registrar")

    async def stop(self) -> None:
        """Tell the router good-bye and end the task."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
            self._task = None

    async def _run(self) -> None:
        token = os.environ.get(TOKEN_ENV)
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        async with aiohttp.ClientSession(timeout=TIMEOUT, headers=headers) as session:
            await self._wait_until_ready(session)
            try:
                async with asyncio.TaskGroup() as tasks:
                    tasks.create_task(self._forever(self._stay_registered, session))
                    tasks.create_task(self._forever(self._watch_peers, session))
            finally:
                await asyncio.shield(self._leave(session))

    async def _forever(
        self, run: Callable[[aiohttp.ClientSession], Awaitable[None]], session: aiohttp.ClientSession
    ) -> None:
        while True:
            try:
                await run(session)
            except (aiohttp.ClientError, TimeoutError, KeyError, ValueError, TypeError) as error:
                logger.warning("router %s: %s: %s", self._router, type(error).__name__, error)
                await asyncio.sleep(RETRY_S)

    async def _wait_until_ready(self, session: aiohttp.ClientSession) -> None:
        while True:
            with contextlib.suppress(aiohttp.ClientError, TimeoutError):
                async with session.get(self._health_url) as response:
                    if response.status == 200:
                        return
            await asyncio.sleep(READY_POLL_S)

    async def _stay_registered(self, session: aiohttp.ClientSession) -> None:
        """Register and send heartbeats until the router does not know us any more."""
        answer = await self._register(session)
        logger.info("registered at %s as %s", self._router, self._info().instance_id)
        while await self._beat(session):
            await asyncio.sleep(answer.heartbeat_s)

    async def _watch_peers(self, session: aiohttp.ClientSession) -> None:
        """Pass on who is registered, as soon as that changes."""
        version = ""
        timeout = aiohttp.ClientTimeout(total=PEERS_WAIT_S + 5)
        while True:
            query = {"after": version, "wait_s": str(PEERS_WAIT_S)}
            async with session.get(f"{self._router}/epd/peers", params=query, timeout=timeout) as response:
                if response.status != 200:
                    raise ValueError(f"peers are not told: {response.status} {await response.text()}")
                answer = await response.json()
            if answer["version"] != version:
                await self._set_peers({str(epoch): [str(a) for a in each] for epoch, each in answer["peers"].items()})
                version = answer["version"]

    async def _register(self, session: aiohttp.ClientSession) -> RouterAnswer:
        url = f"{self._router}/epd/instances"
        async with session.post(url, json=self._info().to_mapping()) as response:
            if response.status != 200:
                raise ValueError(f"registration refused: {response.status} {await response.text()}")
            return RouterAnswer(heartbeat_s=float((await response.json())["heartbeat_s"]))

    async def _beat(self, session: aiohttp.ClientSession) -> bool:
        info = self._info().to_mapping()
        body = {key: info[key] for key in ("epoch", "roles", "models")}
        async with session.put(self._url(info["instance_id"]), json=body) as response:
            return response.status == 200

    async def _leave(self, session: aiohttp.ClientSession) -> None:
        info = self._info()
        with contextlib.suppress(aiohttp.ClientError, TimeoutError):
            async with session.delete(self._url(info.instance_id), params={"epoch": info.epoch}):
                pass

    def _url(self, instance_id: str) -> str:
        return f"{self._router}/epd/instances/{quote(instance_id, safe='')}"
