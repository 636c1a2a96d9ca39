# SPDX-License-Identifier: Apache-2.0
"""The producer's answers: who may read, what, where and for how long."""

import asyncio
import logging
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from uuid import uuid4

from vllm_epd.errors import EmbeddingLostError, PeerError, TransferError
from vllm_epd.transfer import wire
from vllm_epd.transfer.checksum import checksum
from vllm_epd.transfer.handshake import Identity
from vllm_epd.transfer.items import Place, StoredItem
from vllm_epd.transfer.store import EmbeddingStore
from vllm_epd.transfer.tiers import Tiers

logger = logging.getLogger(__name__)

WRITE_POLL_S = 0.0005
PROGRESS_S = 0.0005
MAX_PEERS = 4096
"""Connections remembered; one that is pushed out, or that ZeroMQ has silently renewed, says Hello again."""


FindTransfer = Callable[[str], list[tuple[str, int]] | None]
"""Keys and sizes of the items of a transfer; None where it is not known."""


@dataclass(slots=True)
class _Visitor:
    """One connection: what was said on it, and whether it has been let in."""

    hello: wire.Hello
    challenge: wire.Challenge
    admitted: bool = False


class Server:
    """Answers the consumers of one producer. Before a consumer has proved who it is, nothing is given out."""

    def __init__(
        self,
        identity: Identity,
        tiers: Tiers,
        store: EmbeddingStore,
        grant_s: float,
        listed: FindTransfer = lambda transfer: None,
        *,
        checksums: bool = False,
    ) -> None:
        """Serve `store` over `tiers`.

        Args:
            identity: of this producer.
            tiers: its transports.
            store: what it offers.
            grant_s: how long a grant lasts, and how long an answer may wait for what is not there yet.
            listed: finds the items of a transfer.
            checksums: whether a grant says what the bytes add up to.
        """
        self._identity = identity
        self._tiers = tiers
        self._store = store
        self._listed = listed
        self._grant_s = grant_s
        self._checksums = checksums
        self._visitors: OrderedDict[bytes, _Visitor] = OrderedDict()
        self._grants: dict[str, tuple[str, float]] = {}
        self._reading = asyncio.Event()
        self.refused = 0

    async def handle(self, visitor: bytes, frame: bytes) -> wire.Reply | None:
        """Answer one message of the connection `visitor`; None where none is due."""
        try:
            request = wire.decode_request(frame)
            if isinstance(request, wire.Hello):
                return self._greet(visitor, request)
            if isinstance(request, wire.Proof):
                return self._admit(visitor, request)
            if not (visitor in self._visitors and self._visitors[visitor].admitted):
                raise PeerError("say Hello first")
        except (TransferError, ValueError, RecursionError) as error:
            return self._refuse(visitor, str(error))
        self._visitors.move_to_end(visitor)
        if isinstance(request, wire.Fetch):
            return await self._grant(request)
        if isinstance(request, wire.AskTransfer):
            return await self._list(request)
        if isinstance(request, wire.Done):
            if self._grants.pop(request.grant, None) is not None:
                self._store.release(request.grant)
        else:
            self._store.end_lease(request.lease)
        return None

    async def progress(self) -> None:
        """Drive the transports for ever, but only while a grant is out."""
        while True:
            await self._reading.wait()
            for tier in {tier for tier, _ in self._grants.values()}:
                self._progress(tier)
            now = time.monotonic()
            self._grants = {grant: (tier, end) for grant, (tier, end) in self._grants.items() if end > now}
            if not self._grants:
                self._reading.clear()
            await asyncio.sleep(PROGRESS_S)

    def _progress(self, tier: str) -> None:
        try:
            self._tiers.progress(tier)
        except TransferError as error:
            logger.warning("a peer's read over %s may fail: %s", tier, error)

    def _greet(self, visitor: bytes, hello: wire.Hello) -> wire.Reply:
        challenge = self._identity.challenge(hello)
        self._visitors[visitor] = _Visitor(hello, challenge)
        self._visitors.move_to_end(visitor)
        while len(self._visitors) > MAX_PEERS:
            self._visitors.popitem(last=False)
        return challenge

    def _admit(self, visitor: bytes, proof: wire.Proof) -> wire.Reply:
        known = self._visitors.get(visitor)
        if known is None:
            raise PeerError("say Hello first")
        self._identity.admit(known.hello, known.challenge, proof)
        welcome = wire.Welcome(
            epoch=self._identity.epoch,
            fingerprint=self._identity.fingerprint.to_mapping(),
            tiers=self._tiers.offers(known.hello.tiers),
        )
        known.admitted = True
        return welcome

    async def _grant(self, fetch: wire.Fetch) -> wire.Reply:
        if fetch.tier not in self._tiers.names:
            return wire.Lost(f"no transport {fetch.tier!r} here")
        if fetch.wait:
            await self._store.news.until(lambda: self._store.status(fetch.key) is Place.HELD, self._grant_s)
        grant = f"grant-{uuid4().hex}"
        try:
            item = self._store.grant(fetch.key, grant, self._grant_s)
        except EmbeddingLostError as error:
            return wire.Lost(str(error))
        await _written(item)
        if objection := item.objection:
            logger.error("embedding %s is not sent: it %s", fetch.key, objection)
            self._store.release(grant)
            return wire.Lost(f"the embedding {fetch.key!r} {objection}")
        crc = await checksum(self._store.pieces(item.spans)) if self._checksums else None
        self._grants[grant] = (fetch.tier, time.monotonic() + self._grant_s)
        self._reading.set()
        return wire.Granted(
            grant=grant,
            spans=[(span.offset, span.length) for span in item.spans],
            shape=list(item.shape),
            dtype=str(item.dtype).removeprefix("torch."),
            grant_s=self._grant_s,
            codec=item.codec,
            checksum=crc,
        )

    async def _list(self, asked: wire.AskTransfer) -> wire.Reply:
        await self._store.news.until(lambda: self._listed(asked.transfer) is not None, self._grant_s)
        items = self._listed(asked.transfer)
        return wire.Lost(f"no transfer {asked.transfer!r} here") if items is None else wire.Listed(items)

    def _refuse(self, visitor: bytes, reason: str) -> wire.Refused:
        self._visitors.pop(visitor, None)
        self.refused += 1
        logger.warning("refused a peer: %s", reason)
        return wire.Refused(reason)


async def _written(item: StoredItem) -> None:
    while not item.ready:
        await asyncio.sleep(WRITE_POLL_S)
