# SPDX-License-Identifier: Apache-2.0
"""KV caches on their way from P to D over our own connector: what P is asked to offer, and what D is told of it."""

import asyncio
from collections.abc import Mapping

from vllm_epd.router.calls import AdminCalls
from vllm_epd.router.capacity import KV_CHUNK_TOKENS
from vllm_epd.router.client import InstanceClient
from vllm_epd.router.config import RouterConfig
from vllm_epd.router.instances import Instance
from vllm_epd.router.names import offer_name
from vllm_epd.router.seats import Seat
from vllm_epd.types import Role, kv_epoch

_EXPECT = "/epd/kv/expect"
_FORGET = "/epd/kv/forget"


class Offer:
    """One KV cache that P is asked to offer, and the D that is to have it, from construction to `close`.

    D learns of the offer while P still prefills, where it is known which data-parallel rank will have it, so that it
    can fetch what is there already. That is a hint: the answer of P says what D needs. It is not given for a prompt of
    less than a chunk, of which nothing is there before P has answered: it would only take processor time while P works.

    Attributes:
        transfer: name of the offer.
        prefill: the instance that offers it.
        seat: the place of the request at the instance that is to have it.
        taken: a decode instance has generated from it, and so has given back what P keeps for it.
    """

    def __init__(
        self, calls: Mapping[Role, AdminCalls], request_id: str, prefill: Instance, seat: Seat, tokens: float
    ) -> None:
        self.transfer = offer_name(request_id)
        self.prefill = prefill
        self.seat = seat
        self.taken = False
        self._calls = calls
        self._closed = False
        self._told: asyncio.Task[None] | None = None
        limits, one_rank = prefill.info.limits, len(prefill.info.kv_agents) == prefill.info.kv_shards
        if one_rank and tokens >= limits.get(KV_CHUNK_TOKENS, 0):
            hint = {"transfer": self.transfer, "epoch": kv_epoch(prefill.info.epoch), "rank": 0}
            self._told = calls[Role.DECODE].tell(self.decoder, _EXPECT, hint)

    @property
    def decoder(self) -> Instance:
        """The instance that is to have it."""
        return self.seat.instance

    def close(self) -> None:
        """D needs nothing of it any more; once, however often it is called.

        Where no decode instance has got that far, P learns that nobody will come.
        """
        if self._closed:
            return
        self._closed = True
        self.pass_over()
        if not self.taken:
            self._calls[Role.PREFILL].tell(self.prefill, _FORGET, {"transfer": self.transfer})

    def pass_over(self) -> None:
        """The decoder that was to have it expects it no more: another one gets it, or none."""
        self.seat.end()
        told, self._told = self._told, None
        if told is not None:
            self._calls[Role.DECODE].tell(self.decoder, _FORGET, {"transfer": self.transfer}, after=told)


class KvClient:
    """Makes offers, and tells instances of them in the background."""

    def __init__(self, client: InstanceClient, config: RouterConfig) -> None:
        self._calls = {role: AdminCalls(role, client, config) for role in (Role.PREFILL, Role.DECODE)}

    def offer(self, request_id: str, prefill: Instance, seat: Seat, tokens: float) -> Offer:
        """A new offer of so many tokens at most, of which the seat's instance learns; the seat ends with the offer."""
        return Offer(self._calls, request_id, prefill, seat, tokens)

    async def close(self) -> None:
        """Tell what is still to be told, and nothing after that."""
        for calls in self._calls.values():
            await calls.close()
