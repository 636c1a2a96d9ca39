# SPDX-License-Identifier: Apache-2.0
"""Calls to encode instances about embeddings that they hold: a lease of one's own, and leases given back."""

import asyncio
from collections.abc import Callable, Sequence

from vllm_epd.errors import UpstreamError
from vllm_epd.router import jsonio
from vllm_epd.router.answers import decode_answer
from vllm_epd.router.calls import AdminCalls
from vllm_epd.router.client import InstanceClient
from vllm_epd.router.config import RouterConfig
from vllm_epd.router.embeddings import Lease
from vllm_epd.router.failures import UnreachableError
from vllm_epd.router.instances import Instance
from vllm_epd.types import Role

_TAKE = "/epd/leases"
_RELEASE = "/epd/leases/release"
_FORGET = "/epd/leases/forget"


class LeaseClient:
    """Takes leases, and gives them back in the background."""

    def __init__(self, client: InstanceClient, config: RouterConfig) -> None:
        self._calls = AdminCalls(Role.ENCODE, client, config)

    async def take(
        self, holder: Instance, lease: Lease, model: str | None, lora: str | None
    ) -> jsonio.JsonObject | None:
        """The handle of a new lease on an embedding; None if it is not held any more.

        Raises:
            UpstreamError: the instance did not say; if it has granted the lease, that is given back.
        """
        ask = {"key": lease.key, "rank": lease.rank, "lease": lease.id, "model": model, "lora": lora}
        try:
            return _handle(await self._calls.ask(holder, _TAKE, ask), holder)
        except UnreachableError:
            raise
        except (UpstreamError, asyncio.CancelledError):
            self.release(holder, [lease])
            raise

    def release(self, holder: Instance, leases: Sequence[Lease], ended: Callable[[], None] = lambda: None) -> None:
        """Give back leases of one rank, then call `ended`; a failure leaves them to run out."""
        told = {"leases": [lease.id for lease in leases], "rank": leases[0].rank}
        self._calls.tell(holder, _RELEASE, told, ended=ended)

    def forget(self, holder: Instance, offer: str) -> None:
        """Nobody has heard what was offered under a name, if anything was; a failure leaves it to run out."""
        self._calls.tell(holder, _FORGET, {"transfer": offer})

    async def close(self) -> None:
        """Take no more to give back, and wait until the rest is, at most for as long as a call may take."""
        await self._calls.close()


def _handle(raw: bytes, holder: Instance) -> jsonio.JsonObject | None:
    handle = decode_answer(raw, Role.ENCODE.value).get("handle")
    if handle is not None and not isinstance(handle, dict):
        raise UpstreamError(f"encode instance {holder.name} gave no usable handle", stage=Role.ENCODE.value)
    return handle
