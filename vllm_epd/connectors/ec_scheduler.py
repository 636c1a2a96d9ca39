# SPDX-License-Identifier: Apache-2.0
"""The scheduler halves of the embedding connector: plain bookkeeping, no torch, no vLLM at run time."""

import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from vllm_epd.connectors.landing import LandingBook, LandingState
from vllm_epd.connectors.link import AgentLink
from vllm_epd.connectors.metadata import Load, Offer
from vllm_epd.errors import TransferError
from vllm_epd.transfer import wire

if TYPE_CHECKING:
    from vllm.multimodal.inputs import MultiModalFeatureSpec
    from vllm.v1.request import Request

logger = logging.getLogger(__name__)

OPTIONS = "epd"
"""Key of `ec_transfer_params` that holds what the router asks for; all other keys are content keys."""


class ProducerHalf:
    """Remembers which requests the router wants offered, and gives the worker the keys of each step."""

    def __init__(self, epoch: str, peer: str) -> None:
        """Hand out handles that point at `peer` in this `epoch`."""
        self._epoch = epoch
        self._peer = peer
        self._offers: dict[str, tuple[Offer, ...]] = {}

    def note(self, request: "Request") -> None:
        """Remember `request` if its embeddings are to be offered; called whenever it is considered."""
        if request.request_id not in self._offers and _options(request).get("offer"):
            keys = dict.fromkeys(feature.identifier for feature in request.mm_features)
            self._offers[request.request_id] = tuple(
                Offer(key, f"{request.request_id}:{index}") for index, key in enumerate(keys)
            )

    def step_offers(self, scheduled: Mapping[str, int]) -> tuple[Offer, ...]:
        """Offers of the requests that take part in this step."""
        return tuple(offer for request_id in scheduled for offer in self._offers.get(request_id, ()))

    def finish(self, request: "Request") -> dict[str, dict[str, Any]]:
        """Forget `request`; its handles by content key."""
        return {offer.key: {"handle": self._handle(offer)} for offer in self._offers.pop(request.request_id, ())}

    def _handle(self, offer: Offer) -> dict[str, Any]:
        return {
            "version": wire.WIRE_VERSION,
            "key": offer.key,
            "lease": offer.lease,
            "peer": self._peer,
            "epoch": self._epoch,
        }


class ConsumerHalf:
    """Starts fetches while requests wait, tells the scheduler when a request may run, and fails the one it must."""

    def __init__(self, link: AgentLink, idle_bytes: int, *, tower: bool) -> None:
        """Command the agents behind `link`; without `tower` an item with no handle cannot be had at all."""
        self._link = link
        self._book = LandingBook(idle_bytes)
        self._tower = tower
        self._unacknowledged: dict[str, dict[str, wire.EmbeddingHandle]] = {}
        self._unavailable: set[str] = set()
        self._loads: list[Load] = []

    def available(self, request: "Request", num_computed_tokens: int) -> bool:
        """Whether every embedding that `request` still needs is here; starts to fetch those that are not."""
        self._collect()
        if request.request_id in self._unavailable:
            return False
        needed = [f for f in request.mm_features if _end(f) > num_computed_tokens]
        if not needed:
            return True
        try:
            handles = self._handles(request)
        except TransferError as error:
            return self._give_up(request, str(error))
        for feature in needed:
            handle = handles.get(feature.identifier)
            if handle is not None:
                self._use(handle, request)
            elif not self._tower:
                return self._give_up(request, f"no handle for {feature.identifier} and no encoder here")
        return self._settled(request, [f.identifier for f in needed if f.identifier in handles])

    def has(self, key: str) -> bool:
        """Whether `key` is with the workers."""
        landing = self._book.get(key)
        return landing is not None and landing.state is LandingState.READY

    def load(self, key: str) -> None:
        """The scheduler made room for `key` in the encoder cache: bring it in with the next step."""
        if self.has(key):
            self._loads.append(Load(key, self._book[key].number))

    def take_unavailable(self) -> set[str]:
        """Requests whose embeddings cannot be had; each is told once."""
        taken, self._unavailable = self._unavailable, set()
        return taken

    def step_loads(self) -> tuple[Load, ...]:
        """Loads since the last step."""
        loads, self._loads = tuple(self._loads), []
        return loads

    def step_drops(self) -> tuple[int, ...]:
        """Landings to drop; only for a step that reaches the workers."""
        return self._book.take_drops()

    def finish(self, request: "Request") -> None:
        """`request` has ended in whatever way: nothing is held for it any more, here or at its producers."""
        self._unavailable.discard(request.request_id)
        self._book.leave(request.request_id)
        handles = self._unacknowledged.pop(request.request_id, None)
        if handles is None:
            try:
                handles = _read_handles(request)
            except TransferError:
                return
        for handle in handles.values():
            self._link.release(handle)

    def close(self) -> None:
        """Close the line to the agents."""
        self._link.close()

    def _handles(self, request: "Request") -> dict[str, wire.EmbeddingHandle]:
        if request.request_id not in self._unacknowledged:
            self._unacknowledged[request.request_id] = _read_handles(request)
        return self._unacknowledged[request.request_id]

    def _use(self, handle: wire.EmbeddingHandle, request: "Request") -> None:
        number = self._book.use(handle.key, request.request_id)
        if number is not None:
            self._link.pull(number, handle)

    def _settled(self, request: "Request", keys: list[str]) -> bool:
        for key in keys:
            if self._book[key].state is LandingState.FAILED:
                return self._give_up(request, f"{key}: {self._book[key].reason}")
        return all(self.has(key) for key in keys)

    def _give_up(self, request: "Request", reason: str) -> bool:
        logger.error("request %s fails: embedding unavailable: %s", request.request_id, reason)
        self._unavailable.add(request.request_id)
        return False

    def _collect(self) -> None:
        for report in self._link.poll():
            if isinstance(report, wire.Pulled):
                self._book.landed(report.landing, report.nbytes)
            else:
                self._book.failed(report.landing, report.reason)


def describe(request: "Request") -> bool:
    """Whether the router wants the metadata of items that this instance encodes for itself."""
    return bool(_options(request).get("describe"))


def _options(request: "Request") -> Mapping[str, Any]:
    options = (request.ec_transfer_params or {}).get(OPTIONS)
    return options if isinstance(options, Mapping) else {}


def _read_handles(request: "Request") -> dict[str, wire.EmbeddingHandle]:
    handles: dict[str, wire.EmbeddingHandle] = {}
    for key, entry in (request.ec_transfer_params or {}).items():
        if key == OPTIONS:
            continue
        handle = wire.handle_from_json(entry.get("handle") if isinstance(entry, Mapping) else entry)
        if handle.key != key:
            raise TransferError(f"the handle under {key!r} is for {handle.key!r}")
        handles[key] = handle
    return handles


def _end(feature: "MultiModalFeatureSpec") -> int:
    return int(feature.mm_position.offset + feature.mm_position.length)
