# SPDX-License-Identifier: Apache-2.0
"""The producer's answers: who may read, what, where and for how long."""

import asyncio
import logging
import time
from uuid import uuid4

from vllm_epd.errors import ConfigError, EmbeddingLostError, TransferError
from vllm_epd.transfer import wire
from vllm_epd.transfer.base import Transport
from vllm_epd.transfer.store import EmbeddingStore, StoredItem
from vllm_epd.types import Fingerprint

logger = logging.getLogger(__name__)

WRITE_POLL_S = 0.0005
PROGRESS_S = 0.0005


class Server:
    """Answers consumers of one producer. A consumer is known after its Hello; before it, nothing is given out."""

    def __init__(
        self,
        epoch: str,
        fingerprint: Fingerprint,
        transport: Transport,
        store: EmbeddingStore,
        grant_s: float,
    ) -> None:
        """Serve `store` over `transport`; a grant lasts `grant_s` seconds."""
        self._epoch = epoch
        self._fingerprint = fingerprint
        self._transport = transport
        self._store = store
        self._grant_s = grant_s
        self._known: set[bytes] = set()
        self._grants: dict[str, float] = {}
        self._reading = asyncio.Event()

    async def handle(self, identity: bytes, frame: bytes) -> wire.Reply | None:
        """Answer one message of the peer `identity`; None where none is due."""
        try:
            request = wire.decode_request(frame)
        except TransferError as error:
            return self._refuse(str(error))
        if isinstance(request, wire.Hello):
            return self._greet(identity, request)
        if identity not in self._known:
            return self._refuse("say Hello first")
        if isinstance(request, wire.Fetch):
            return await self._grant(request.key)
        if isinstance(request, wire.Done):
            self._grants.pop(request.grant, None)
            self._store.release(request.grant)
        else:
            self._store.release(request.lease)
        return None

    async def progress(self) -> None:
        """Drive the transport for ever, but only while a grant is out."""
        while True:
            await self._reading.wait()
            self._transport.progress()
            now = time.monotonic()
            self._grants = {grant: end for grant, end in self._grants.items() if end > now}
            if not self._grants:
                self._reading.clear()
            await asyncio.sleep(PROGRESS_S)

    def _greet(self, identity: bytes, hello: wire.Hello) -> wire.Reply:
        if hello.version != wire.WIRE_VERSION:
            return self._refuse(f"wire version {hello.version}, this instance speaks {wire.WIRE_VERSION}")
        if hello.epoch != self._epoch:
            return self._refuse(f"epoch {hello.epoch} is over, the instance was restarted as {self._epoch}")
        if hello.transport != self._transport.name:
            return self._refuse(f"transport {hello.transport!r}, this instance moves bytes by {self._transport.name!r}")
        try:
            theirs = Fingerprint.from_mapping(hello.fingerprint)
        except ConfigError as error:
            return self._refuse(str(error))
        if differences := self._fingerprint.differences(theirs):
            return self._refuse(f"fingerprints differ: {'; '.join(differences)}")
        self._known.add(identity)
        return wire.Welcome(
            version=wire.WIRE_VERSION,
            epoch=self._epoch,
            fingerprint=self._fingerprint.to_mapping(),
            transport=self._transport.name,
            description=self._transport.describe(),
        )

    async def _grant(self, key: str) -> wire.Reply:
        grant = uuid4().hex
        try:
            item = self._store.grant(key, grant, self._grant_s)
        except EmbeddingLostError as error:
            return wire.Lost(str(error))
        await _written(item)
        self._grants[grant] = time.monotonic() + self._grant_s
        self._reading.set()
        return wire.Granted(
            grant=grant,
            spans=[(span.offset, span.length) for span in item.spans],
            shape=list(item.shape),
            dtype=str(item.dtype).removeprefix("torch."),
            grant_s=self._grant_s,
        )

    def _refuse(self, reason: str) -> wire.Refused:
        logger.warning("refused a peer: %s", reason)
        return wire.Refused(reason)


async def _written(item: StoredItem) -> None:
    while not item.ready:
        await asyncio.sleep(WRITE_POLL_S)
