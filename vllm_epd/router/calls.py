# SPDX-License-Identifier: Apache-2.0
"""Calls to the /epd routes of instances; those in the background end before the router leaves."""

import asyncio
import logging
from collections.abc import Callable

from vllm_epd.errors import UpstreamError
from vllm_epd.router import jsonio
from vllm_epd.router.client import InstanceClient
from vllm_epd.router.config import RouterConfig
from vllm_epd.router.instances import Instance
from vllm_epd.router.record import REQUEST_ID_HEADER, request_id
from vllm_epd.types import Role

logger = logging.getLogger(__name__)


class AdminCalls:
    """Asks instances of one stage, with the token of the fleet and little patience."""

    def __init__(self, stage: Role, client: InstanceClient, config: RouterConfig) -> None:
        self._stage = stage
        self._client = client
        self._timeout_s = config.timeouts.lease_s
        self._headers = {"Authorization": f"Bearer {config.token}"} if config.token else {}
        self._running: set[asyncio.Task[None]] = set()
        self._closed = False

    async def ask(self, instance: Instance, path: str, body: jsonio.JsonObject) -> bytes:
        """The answer of an instance.

        Raises:
            UpstreamError: there is none, or another status than 200.
        """
        return await self._client.ask(
            self._stage,
            instance,
            path,
            jsonio.encode(body),
            {**self._headers, REQUEST_ID_HEADER: request_id()},
            timeout_s=self._timeout_s,
            judged=False,
        )

    def tell(
        self,
        instance: Instance,
        path: str,
        body: jsonio.JsonObject,
        *,
        ended: Callable[[], None] = lambda: None,
        after: asyncio.Task[None] | None = None,
    ) -> asyncio.Task[None] | None:
        """Tell an instance in the background, not before `after` has ended; then call `ended`, told or not.

        What an instance cannot be told runs out there by itself. None once closed: nobody is told any more.
        """
        if self._closed:
            ended()
            return None
        task = asyncio.create_task(self._tell(instance, path, body, after))
        self._running.add(task)
        task.add_done_callback(self._running.discard)
        task.add_done_callback(lambda _: ended())
        return task

    async def close(self) -> None:
        """Take no more to tell, and wait until the rest is told, at most for as long as the calls may take."""
        self._closed = True
        await asyncio.gather(*self._running)

    async def _tell(
        self, instance: Instance, path: str, body: jsonio.JsonObject, after: asyncio.Task[None] | None
    ) -> None:
        if after is not None:
            await asyncio.wait((after,))
        try:
            await self.ask(instance, path, body)
        except UpstreamError as error:
            logger.info("request %s: %s could not be told %s: %s", request_id(), instance.name, path, error)
