# SPDX-License-Identifier: Apache-2.0
"""The scheduler halves of the KV connector: plain bookkeeping, no torch, no vLLM at run time."""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

from vllm_epd.connectors.desk import Desk
from vllm_epd.connectors.ec_scheduler import SERVED
from vllm_epd.connectors.kv_keys import Chunk, ChunkShape, Item, cut
from vllm_epd.connectors.kv_metadata import LoadBlocks, SaveBlocks
from vllm_epd.connectors.kv_params import RemoteKV, offered
from vllm_epd.connectors.landing import LandingState
from vllm_epd.errors import TransferError
from vllm_epd.transfer import wire

if TYPE_CHECKING:
    from vllm.v1.request import Request

logger = logging.getLogger(__name__)

BlockIds = Callable[[str], Sequence[int]]
"""The KV blocks of a request, in order."""


@dataclass(slots=True)
class _Outgoing:
    """What P makes of one prompt for others.

    Attributes:
        saved: how many chunks the worker has been told to save.
        lost: why they cannot be offered.
    """

    request: "Request"
    remote: RemoteKV
    chunks: list[Chunk]
    wanted: tuple[wire.Wanted, ...]
    ready: bool = False
    saved: int = 0
    lost: str = ""

    def due(self, computed: int) -> list[Chunk]:
        """Chunks that `computed` tokens complete and that are not saved yet."""
        complete = [chunk for chunk in self.chunks[self.saved :] if chunk.end <= computed]
        self.saved += len(complete)
        return complete

    def saves(self, chunks: Sequence[Chunk], block_ids: Sequence[int]) -> list[SaveBlocks]:
        """Orders to save `chunks` of a prompt whose blocks are `block_ids`."""
        transfer = self.remote.transfer
        return [SaveBlocks(each.key, _lease(transfer, each), each.blocks_of(block_ids)) for each in chunks]


class KVProducerHalf:
    """Makes room for the KV cache of a prompt before it is prefilled, and has it saved chunk by chunk meanwhile.

    The blocks are free as soon as the request is over: what travels lies in the pool, under leases of its own.
    """

    def __init__(self, desk: Desk, epoch: str, rank: int, shape: ChunkShape) -> None:
        """Offer as the agents of data-parallel rank `rank` of `epoch`."""
        self._desk = desk
        self._epoch = epoch
        self._rank = rank
        self._shape = shape
        self._outgoing: dict[str, _Outgoing] = {}

    def available(self, request: "Request") -> bool:
        """Whether `request` may be prefilled: there is room for its KV cache, or it wants none."""
        transfer = offered(request.kv_transfer_params)
        if transfer is None or request.prompt_token_ids is None:
            return True
        outgoing = self._outgoing.get(request.request_id)
        if outgoing is None:
            outgoing = self._outgoing[request.request_id] = self._begin(request, transfer)
            self._desk.reserve(outgoing.wanted, partial(self._on_reserved, outgoing), transfer)
        return outgoing.ready

    def step_saves(self, scheduled: Mapping[str, int], block_ids: BlockIds) -> tuple[SaveBlocks, ...]:
        """Chunks that this step completes."""
        saves: list[SaveBlocks] = []
        for request_id, tokens in scheduled.items():
            outgoing = self._outgoing.get(request_id)
            if outgoing is None or outgoing.lost:
                continue
            if due := outgoing.due(outgoing.request.num_computed_tokens + tokens):
                saves += outgoing.saves(due, block_ids(request_id))
        return tuple(saves)

    def finish(self, request: "Request") -> dict[str, Any] | None:
        """Forget `request`; where its KV cache can be had, None if nobody is there to get it or it is nowhere."""
        outgoing = self._outgoing.pop(request.request_id, None)
        if outgoing is None:
            return None
        self._desk.leave(request.request_id)
        if request.status.name in SERVED and not outgoing.lost and outgoing.saved == len(outgoing.chunks):
            sampled = request.output_token_ids
            return outgoing.remote.answer(int(sampled[0]) if sampled else None)
        if outgoing.lost:
            logger.error("the KV cache of request %s is not offered: %s", request.request_id, outgoing.lost)
        self._desk.withdraw(outgoing.wanted)
        return None

    def _begin(self, request: "Request", transfer: str) -> _Outgoing:
        tokens = request.prompt_token_ids
        assert tokens is not None
        chunks = cut(tokens, _items_of(request), _circumstances_of(request), self._shape)
        wanted = tuple(
            wire.Wanted(self._desk.book.new_number(), chunk.key, _lease(transfer, chunk), chunk.nbytes)
            for chunk in chunks
        )
        return _Outgoing(request, RemoteKV(transfer, self._epoch, self._rank, len(tokens)), chunks, wanted)

    def _on_reserved(self, outgoing: _Outgoing, report: wire.Reserved | wire.ReserveFailed) -> None:
        """A prompt whose KV cache finds no room is prefilled all the same."""
        outgoing.ready = True
        if isinstance(report, wire.ReserveFailed):
            outgoing.lost = report.reason
            return
        for landing in report.held:
            self._desk.book.reject(landing)
        self._desk.send_drops()


@dataclass(slots=True)
class _Incoming:
    """What D gets for one prompt.

    Attributes:
        chunks: all chunks of the prompt.
        handles: of those that have not been given back, by key.
        transfer: names the hand-over.
        needed: chunks that the local cache lacks.
        first_block: the first block to load.
        over: nothing is to be loaded any more, or anything could not be had.
    """

    chunks: list[Chunk]
    handles: dict[str, wire.EmbeddingHandle]
    transfer: str = ""
    needed: list[Chunk] = field(default_factory=list)
    first_block: int = 0
    over: bool = False


class KVConsumerHalf:
    """Has the chunks that the local cache lacks fetched while requests wait; what cannot be had is computed here."""

    def __init__(self, desk: Desk, shape: ChunkShape) -> None:
        """Command the agents behind `desk`."""
        self._desk = desk
        self._shape = shape
        self._incoming: dict[str, _Incoming] = {}
        self._loads: list[tuple[Chunk, int, tuple[int, ...]]] = []
        self.recomputed = 0

    def matched(self, request: "Request", num_computed_tokens: int) -> int | None:
        """Tokens beyond `num_computed_tokens` whose KV cache is here for the loading; None while it is on its way."""
        try:
            incoming = self._incoming_of(request)
        except TransferError as error:
            return self._compute_here(request, str(error))
        if incoming is None or incoming.over:
            return 0
        end = min(incoming.chunks[-1].end, int(request.num_tokens) - 1)
        self._want(request.request_id, incoming, num_computed_tokens, end)
        self._give_back_landed(incoming)
        landings = [self._desk.book.get(chunk.key) for chunk in incoming.needed]
        for landing in landings:
            if landing is not None and landing.state is LandingState.FAILED:
                return self._compute_here(request, f"{landing.key}: {landing.reason}")
        if not all(self._desk.book.is_ready(chunk.key) for chunk in incoming.needed):
            return None
        return max(0, end - num_computed_tokens)

    def allocated(self, request: "Request", block_ids: Sequence[int], num_external_tokens: int) -> None:
        """`request` has its blocks: have them loaded with this step."""
        incoming = self._incoming.get(request.request_id)
        if incoming is None or incoming.over:
            return
        for chunk in incoming.needed if num_external_tokens else ():
            skip = max(0, incoming.first_block - chunk.first_block)
            self._desk.book.load(chunk.key)
            self._loads.append((chunk, skip, chunk.blocks_of(block_ids, skip)))
        self._end(request.request_id, incoming)

    def step_loads(self) -> tuple[LoadBlocks, ...]:
        """Loads of this step."""
        loads, self._loads = self._loads, []
        landings = self._desk.take_loads()
        return tuple(
            LoadBlocks(chunk.key, load.landing, skip, block_ids)
            for (chunk, skip, block_ids), load in zip(loads, landings, strict=True)
        )

    def finish(self, request: "Request") -> None:
        """`request` has ended in whatever way: nothing is held for it, here or at its producer."""
        if request.request_id not in self._incoming:
            try:
                self._incoming_of(request)
            except TransferError:
                return
        incoming = self._incoming.pop(request.request_id, None)
        if incoming is not None:
            self._end(request.request_id, incoming)

    def _incoming_of(self, request: "Request") -> _Incoming | None:
        known = self._incoming.get(request.request_id)
        if known is not None:
            return known
        remote = RemoteKV.read(request.kv_transfer_params)
        if remote is None:
            return None
        tokens = request.prompt_token_ids
        if tokens is None or remote.tokens > len(tokens):
            raise TransferError(f"KV of {remote.tokens} tokens for a prompt of {len(tokens or ())}")
        chunks = cut(tokens[: remote.tokens], _items_of(request), _circumstances_of(request), self._shape)
        handles = {chunk.key: _handle(remote, chunk) for chunk in chunks}
        incoming = self._incoming[request.request_id] = _Incoming(chunks, handles, remote.transfer)
        return incoming

    def _want(self, request_id: str, incoming: _Incoming, computed: int, end: int) -> None:
        """Fetch what reaches beyond the `computed` tokens that are here; the rest is given back to its producer."""
        incoming.first_block = computed // self._shape.block_tokens
        incoming.needed = [
            chunk for chunk in incoming.chunks if chunk.end > computed < end and self._shape.start(chunk) < end
        ]
        needed = {chunk.key for chunk in incoming.needed}
        for key in [key for key in incoming.handles if key not in needed]:
            self._desk.book.release(key, request_id)
            self._desk.link.release(incoming.handles.pop(key))
        for chunk in incoming.needed:
            if chunk.key in incoming.handles:
                self._desk.pull(incoming.handles[chunk.key], request_id)
        self._desk.send_drops()

    def _give_back_landed(self, incoming: _Incoming) -> None:
        """The producer may let go of what is here."""
        for key in [key for key in incoming.handles if self._desk.book.is_ready(key)]:
            self._desk.link.release(incoming.handles.pop(key))

    def _compute_here(self, request: "Request", reason: str) -> int:
        logger.warning("request %s is prefilled here: its KV cache cannot be had: %s", request.request_id, reason)
        self.recomputed += 1
        incoming = self._incoming.setdefault(request.request_id, _Incoming([], {}))
        self._end(request.request_id, incoming)
        return 0

    def _end(self, request_id: str, incoming: _Incoming) -> None:
        """Give back what is left; drops wait for the loads that were ordered."""
        if incoming.transfer and not incoming.over:
            self._desk.link.forget(incoming.transfer)
        incoming.over = True
        for handle in incoming.handles.values():
            self._desk.link.release(handle)
        incoming.handles.clear()
        incoming.needed = []
        self._desk.leave(request_id)


def _items_of(request: "Request") -> list[Item]:
    """The media of a prompt."""
    return [Item(feature.identifier, int(feature.mm_position.offset)) for feature in request.mm_features]


def _circumstances_of(request: "Request") -> tuple[str | None, ...]:
    """What decides the KV cache of a prompt besides tokens and media, and who may share it."""
    lora = request.lora_request
    return (None if lora is None else str(lora.lora_path), request.cache_salt)


def _handle(remote: RemoteKV, chunk: Chunk) -> wire.EmbeddingHandle:
    lease = _lease(remote.transfer, chunk)
    return wire.EmbeddingHandle(wire.WIRE_VERSION, chunk.key, lease, remote.epoch, remote.rank, chunk.nbytes)


def _lease(transfer: str, chunk: Chunk) -> str:
    return f"{transfer}:{chunk.first_block}"
