# SPDX-License-Identifier: Apache-2.0
"""What one worker tells and asks the others: instances that came, lived or left, the list of all, and numbers.

An instance talks to whichever worker its connection reached. That worker tells the others before it answers; what
comes from a sibling arrives over a Unix socket, at routes of its own, and is not told on.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Any
from urllib.parse import quote

import aiohttp

from vllm_epd.router import jsonio
from vllm_epd.router.workers.worker import Worker
from vllm_epd.types import InstanceInfo

logger = logging.getLogger(__name__)

INSTANCES = "/instances"
METRICS = "/metrics"

#: A sibling answers at once, or is leaving.
_PATIENCE_S = 1.0


class Siblings:
    """The other workers; none where a router is one process. Open between `start` and `close`."""

    def __init__(self, worker: Worker | None) -> None:
        self._worker = worker
        self._sessions: dict[int, aiohttp.ClientSession] = {}

    async def start(self) -> None:
        """Once, in the running event loop."""
        if self._worker is None:
            return
        for number in self._worker.siblings:
            connector = aiohttp.UnixConnector(str(self._worker.socket_of(number)))
            timeout = aiohttp.ClientTimeout(total=_PATIENCE_S)
            self._sessions[number] = aiohttp.ClientSession("http://sibling", connector=connector, timeout=timeout)

    async def close(self) -> None:
        """Close the connections."""
        for session in self._sessions.values():
            await session.close()

    async def lives(self, info: InstanceInfo) -> None:
        """Tell all that an instance has registered, or lives and does what `info` says."""
        if self._sessions:
            body = jsonio.encode(info.to_mapping())
            await self._all(lambda session: _done(session.post(INSTANCES, data=body)))

    async def left(self, instance_id: str, epoch: str) -> None:
        """Tell all that an instance has left."""
        path = f"{INSTANCES}/{quote(instance_id, safe='')}"
        await self._all(lambda session: _done(session.delete(path, params={"epoch": epoch})))

    async def instances(self) -> list[InstanceInfo]:
        """The instances that any sibling knows."""
        answers = await self._all(lambda session: _read(session.get(INSTANCES)))
        listed = [InstanceInfo.from_mapping(each) for answer in answers.values() for each in jsonio.decode(answer)]
        return list({info.instance_id: info for info in listed}.values())

    async def metrics(self) -> dict[int, str]:
        """The numbers of each sibling that answers."""
        answers = await self._all(lambda session: _read(session.get(METRICS)))
        return {number: answer.decode() for number, answer in answers.items()}

    async def _all(self, ask: Callable[[aiohttp.ClientSession], Awaitable[bytes]]) -> dict[int, bytes]:
        """Ask all at once; those that are not there just now will ask for the list when they are."""
        answers = await asyncio.gather(*(_asked(number, ask(each)) for number, each in self._sessions.items()))
        return {number: answer for number, answer in zip(self._sessions, answers, strict=True) if answer is not None}


async def _asked(number: int, call: Awaitable[bytes]) -> bytes | None:
    try:
        return await call
    except (aiohttp.ClientError, OSError) as error:
        logger.info("worker %d does not answer: %s", number, str(error) or type(error).__name__)
        return None


async def _read(call: Any) -> bytes:
    async with call as answer:
        answer.raise_for_status()
        read: bytes = await answer.read()
        return read


async def _done(call: Any) -> bytes:
    async with call as answer:
        read: bytes = await answer.read()
        return read
