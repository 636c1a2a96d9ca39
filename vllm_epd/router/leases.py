# SPDX-License-Identifier: Apache-2.0
"""Calls to encode instances about embeddings that they hold: a lease of one's own, and leases given back."""

import asyncio
import logging
from collections.abc import Callable, Sequence

from vllm_epd.errors import UpstreamError
from vllm_epd.router import jsonio
from vllm_epd.router.answers import decode_answer
from vllm_epd.router.client import InstanceClient
from vllm_epd.router.config import RouterConfig
from vllm_epd.router.embeddings import Lease
from vllm_epd.router.failures import UnreachableError
from vllm_epd.router.instances import Instance
from vllm_epd.types import Role

logger = logging.getLogger(__name__)

_TAKE = "/epd/leases"
_RELEASE = "/epd/leases/release"


class LeaseClient:
    """Takes leases, and gives them back in the background."""

    def __init__(self, client: InstanceClient, config: RouterConfig) -> None:
        self._client = client
        self._timeout_s = config.timeouts.lease_s
        self._headers = {"Authorization": f"Bearer {config.token}"} if config.token else {}
        self._releases: set[asyncio.Task[None]] = set()
        self._closed = False

    async def take(
        self, holder: Instance, lease: Lease, model: str | None, lora: str | None
    ) -> jsonio.JsonObject | None:
        """The handle of a new lease on an embedding; None if it is not held any more.

        Raises:
            UpstreamError: the instance did not say; if it has granted the lease, that is given back.
        """
        ask = {"key": lease.key, "rank": lease.rank, "lease": lease.id, "model": model, "lora": lora}
        try:
            return _handle(await self._ask(holder, _TAKE, ask), holder)
        except UnreachableError:
            raise
        except (UpstreamError, asyncio.CancelledError):
            self.release(holder, [lease])
            raise

    def release(self, holder: Instance, leases: Sequence[Lease], ended: Callable[[], None] = lambda: None) -> None:
        """Give back leases of one rank, then call `ended`; a failure leaves them to run out."""
        if self._closed:
            ended()
            return
        task = asyncio.create_task(self._release(holder, leases))
        self._releases.add(task)
        task.add_done_callback(self._releases.discard)
        task.add_done_callback(lambda _: ended())

    async def close(self) -> None:
        """Take no more to give back, and wait until the rest is, at most for as long as a call may take."""
        self._closed = True
        await asyncio.gather(*self._releases)

    async def _release(self, holder: Instance, leases: Sequence[Lease]) -> None:
        told = {"leases": [lease.id for lease in leases], "rank": leases[0].rank}
        try:
            await self._ask(holder, _RELEASE, told)
        except UpstreamError as error:
            logger.info("leases of %s run out by themselves: %s", holder.name, error)

    async def _ask(self, holder: Instance, path: str, body: jsonio.JsonObject) -> bytes:
        return await self._client.ask(
            Role.ENCODE, holder, path, jsonio.encode(body), self._headers, timeout_s=self._timeout_s
        )


def _handle(raw: bytes, holder: Instance) -> jsonio.JsonObject | None:
    handle = decode_answer(raw, Role.ENCODE.value).get("handle")
    if handle is not None and not isinstance(handle, dict):
        raise UpstreamError(f"encode instance {holder.name} gave no usable handle", stage=Role.ENCODE.value)
    return handle
