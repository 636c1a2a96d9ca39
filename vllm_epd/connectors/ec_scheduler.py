# SPDX-License-Identifier: Apache-2.0
"""The scheduler halves of the embedding connector: plain bookkeeping, no torch, no vLLM at run time."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from vllm_epd.connectors.desk import Desk
from vllm_epd.connectors.landing import LandingState
from vllm_epd.connectors.metadata import Offer
from vllm_epd.errors import TransferError
from vllm_epd.transfer import wire
from vllm_epd.transfer.keys import part_key

if TYPE_CHECKING:
    from vllm.multimodal.inputs import MultiModalFeatureSpec
    from vllm.v1.request import Request

OPTIONS = "epd"
"""Key of `ec_transfer_params` that holds what the router asks for; all other keys are content keys."""

SERVED = frozenset({"FINISHED_STOPPED", "FINISHED_LENGTH_CAPPED"})
"""Ends of a request after which somebody gets its handles."""


@dataclass(slots=True)
class _Offered:
    """What a request has encoded here for others, and whether there is room for it.

    Attributes:
        sizes: of the items as they are offered, in bytes; empty until there is room.
    """

    items: tuple[wire.Wanted, ...]
    sizes: tuple[int, ...] = ()

    @property
    def ready(self) -> bool:
        return bool(self.sizes)

    @property
    def sized(self) -> Iterator[tuple[wire.Wanted, int]]:
        """The items, each with its size; none until there is room."""
        return zip(self.items, self.sizes, strict=False)


class ProducerHalf:
    """Makes room for what the router wants offered, and gives the worker the keys of each step.

    A request waits in the scheduler's queue until the pool has room for all that it brings, so the encoder never waits
    for a consumer. What the pool holds already is loaded from there instead of being encoded again.
    """

    def __init__(self, desk: Desk, epoch: str, rank: int, row_bytes: int, *, reuse: bool) -> None:
        """Hand out handles for this `epoch` and `rank`.

        Args:
            desk: the way to the agents.
            epoch: of this instance.
            rank: data-parallel rank of this engine.
            row_bytes: size of one embedding vector as the encoder makes it.
            reuse: whether every worker that needs a held embedding can load it.
        """
        self._desk = desk
        self._epoch = epoch
        self._rank = rank
        self._row_bytes = row_bytes
        self._reuse = reuse
        self._offered: dict[str, _Offered] = {}

    def available(self, request: "Request") -> bool:
        """Whether there is room for what `request` is to offer; asks for it first."""
        offered = self._offered.get(request.request_id)
        if offered is None:
            name = _options(request).get("offer")
            wanted = self._wanted(request) if name else ()
            if not wanted:
                return True
            offered = self._offered[request.request_id] = _Offered(wanted)
            on_reserved = partial(self._on_reserved, request.request_id)
            self._desk.reserve(offered.items, on_reserved, name if isinstance(name, str) else "")
        return offered.ready

    def step_offers(self, scheduled: Mapping[str, int]) -> tuple[Offer, ...]:
        """Offers of the requests that take part in this step."""
        return tuple(
            Offer(item.key, item.lease, nbytes)
            for request_id in scheduled
            if request_id in self._offered
            for item, nbytes in self._offered[request_id].sized
        )

    def finish(self, request: "Request") -> dict[str, dict[str, Any]]:
        """Forget `request`; its handles by content key, none if nobody is there to get them."""
        offered = self._offered.pop(request.request_id, None)
        if offered is None:
            return {}
        if request.status.name not in SERVED or not offered.ready:
            self._desk.withdraw(offered.items)
            return {}
        return {item.key: {"handle": self._handle(item, nbytes), **_lora(request)} for item, nbytes in offered.sized}

    def _wanted(self, request: "Request") -> tuple[wire.Wanted, ...]:
        rows = {feature.identifier: feature.mm_position.get_num_embeds() for feature in request.mm_features}
        return tuple(
            wire.Wanted(self._desk.book.new_number(), key, f"{request.request_id}:{index}", count * self._row_bytes)
            for index, (key, count) in enumerate(rows.items())
            if count  # a part that an item turned out not to have
        )

    def _on_reserved(self, request_id: str, report: wire.Reserved | wire.ReserveFailed) -> None:
        offered = self._offered[request_id]
        if isinstance(report, wire.ReserveFailed):
            self._desk.give_up(request_id, report.reason)
            return
        offered.sizes = tuple(report.sizes)
        for item in offered.items:
            if item.landing in report.held and self._reuse:
                self._desk.book.adopt(item.landing, item.key, request_id)
            elif item.landing in report.held:
                self._desk.book.reject(item.landing)
        self._desk.send_drops()

    def _handle(self, item: wire.Wanted, nbytes: int) -> dict[str, Any]:
        return {
            "version": wire.WIRE_VERSION,
            "key": item.key,
            "lease": item.lease,
            "epoch": self._epoch,
            "rank": self._rank,
            "nbytes": nbytes,
        }


@dataclass(slots=True)
class _Needed:
    """What a request needs of others.

    Attributes:
        handles: by content key of the item; several where it was encoded in parts, in order.
        leased: those whose leases have not been given back, by the key that they name.
    """

    handles: dict[str, tuple[wire.EmbeddingHandle, ...]]
    leased: dict[str, wire.EmbeddingHandle]


class ConsumerHalf:
    """Starts fetches while requests wait, tells the scheduler when a request may run, and fails the one it must."""

    def __init__(self, desk: Desk, capacity_bytes: int, *, tower: bool) -> None:
        """Command the agents behind `desk`.

        Args:
            desk: the way to the agents.
            capacity_bytes: of the region that embeddings land in.
            tower: whether an item without a handle can be encoded here.
        """
        self._desk = desk
        self._capacity_bytes = capacity_bytes
        self._tower = tower
        self._needed: dict[str, _Needed] = {}

    def available(self, request: "Request", num_computed_tokens: int) -> bool:
        """Whether every embedding that `request` still needs is here; starts to fetch those that are not."""
        try:
            needed = self._read(request)
        except TransferError as error:
            return self._give_up(request, str(error))
        wanted = {f.identifier for f in request.mm_features if _end(f) > num_computed_tokens}
        self._let_go(request.request_id, needed.handles.keys() - wanted)
        for key in wanted:
            if key in needed.handles:
                self._desk.pull_all(key, needed.handles[key], request.request_id)
            elif not self._tower:
                return self._give_up(request, f"no handle for {key} and no encoder here")
        return self._settled(request, needed, wanted & needed.handles.keys())

    def finish(self, request: "Request") -> None:
        """`request` has ended in whatever way: nothing is held for it at its producers."""
        needed = self._needed.pop(request.request_id, None)
        if needed is None:
            try:
                needed = _read_handles(request)
            except TransferError:
                return
        for handle in needed.leased.values():
            self._desk.link.release(handle)

    def _read(self, request: "Request") -> _Needed:
        if request.request_id not in self._needed:
            needed = self._needed[request.request_id] = _read_handles(request)
            nbytes = sum(handle.nbytes for handle in needed.leased.values())
            if nbytes > self._capacity_bytes:
                raise TransferError(
                    f"its embeddings have {nbytes} bytes, the pool here {self._capacity_bytes}; raise --epd-pool-bytes"
                )
        return self._needed[request.request_id]

    def _let_go(self, request_id: str, keys: set[str]) -> None:
        """What is part of the KV cache by now is not needed any more."""
        for key in keys:
            self._desk.book.release(key, request_id)
        self._desk.send_drops()

    def _settled(self, request: "Request", needed: _Needed, keys: set[str]) -> bool:
        wanted = {handle.key for key in keys for handle in needed.handles[key]}
        here = {key for key in wanted if self._desk.book.has_landed(key)}
        for key in here & needed.leased.keys():
            self._desk.link.release(needed.leased.pop(key))
        for key in wanted - here:
            landing = self._desk.book.get(key)
            if landing is not None and landing.state is LandingState.FAILED:
                return self._give_up(request, f"{key}: {landing.reason}")
        return here == wanted

    def _give_up(self, request: "Request", reason: str) -> bool:
        self._desk.give_up(request.request_id, reason)
        return False


def wants_description(request: "Request") -> bool:
    """Whether the router wants the metadata of items even where they are offered to nobody.

    That is so of items that this instance encodes for itself, and of parts that an item may not have.
    """
    options = _options(request)
    return bool(options.get("describe") or options.get("shard"))


def _options(request: "Request") -> Mapping[str, Any]:
    options = (request.ec_transfer_params or {}).get(OPTIONS)
    return options if isinstance(options, Mapping) else {}


def _lora(request: "Request") -> dict[str, str]:
    """Which adapter the embedding was made for: the router asks for it again under the same one only."""
    return {} if request.lora_request is None else {"lora": request.lora_request.lora_path}


def _read_handles(request: "Request") -> _Needed:
    entries = (request.ec_transfer_params or {}).items()
    handles = {key: _handles_of(key, entry) for key, entry in entries if key != OPTIONS}
    return _Needed(handles, {handle.key: handle for each in handles.values() for handle in each})


def _handles_of(key: str, entry: Any) -> tuple[wire.EmbeddingHandle, ...]:
    """The handle of an item, or those of its parts."""
    given = entry if isinstance(entry, Mapping) else {}
    parts = given.get("parts", [given.get("handle")])
    if not isinstance(parts, list) or not parts:
        raise TransferError(f"the parts under {key!r} must be a list of handles, got {parts!r}")
    handles = tuple(map(wire.handle_from_json, parts))
    names = [part_key(key, index, len(parts)) for index in range(len(parts))] if "parts" in given else [key]
    for handle, name in zip(handles, names, strict=True):
        if handle.key != name:
            raise TransferError(f"the handle under {key!r} is for {handle.key!r}, expected {name!r}")
    return handles


def _end(feature: "MultiModalFeatureSpec") -> int:
    return int(feature.mm_position.offset + feature.mm_position.length)
