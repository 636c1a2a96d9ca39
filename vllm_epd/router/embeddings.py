# SPDX-License-Identifier: Apache-2.0
"""What an encode instance says of its embeddings, and how that is told to the next stages. Pure.

An answer's `ec_transfer_params` has one entry per distinct item: `mm_hash -> {item_indices, modality,
metadata, handle, lora}`. The handle says where the embedding lies; it is passed on as it is, and only the lease
is read out of it. The metadata sizes the item's placeholders. The entry of a shard also names the item and says which
part of how many it is: `{item, shard: [index, count]}`.
"""

from collections.abc import Iterator, Sequence
from typing import Any

from msgspec import Struct

from vllm_epd.errors import UpstreamError
from vllm_epd.router.jsonio import JsonObject
from vllm_epd.router.media import EncodedItem, Shard

MODALITIES = frozenset({"image", "video", "audio"})

#: Asks an instance that encodes and prefills for the metadata of what it encoded.
DESCRIBE: JsonObject = {"epd": {"describe": True}}


class Lease(Struct, frozen=True):
    """What keeps an embedding in its producer's pool for one request.

    Attributes:
        id: name of the lease.
        key: under which the embedding lies in the pool.
        rank: which of the producer's pools that is.
        nbytes: size of the embedding, 0 if unknown.
    """

    id: str
    key: str
    rank: int = 0
    nbytes: int = 0


def ask_offer(name: str, shard: Shard | None = None) -> JsonObject:
    """Asks an encode instance to keep the embedding and to say where it is; or that of no more than a part of the item.

    Args:
        name: under which it is offered, and can be forgotten.
        shard: the part; None for all of it.
    """
    return {"epd": {"offer": name} if shard is None else {"offer": name, "shard": [shard.index, shard.count]}}


def read_lease(handle: Any) -> Lease | None:
    """The lease that a handle tells of; None if it tells none."""
    if not isinstance(handle, dict):
        return None
    lease, key = handle.get("lease"), handle.get("key")
    if not isinstance(lease, str) or not isinstance(key, str):
        return None
    return Lease(lease, key, _count(handle.get("rank")), _count(handle.get("nbytes")))


def read_offer(answer: JsonObject, instance: str) -> EncodedItem:
    """The one item that an encode instance was asked to encode.

    Raises:
        UpstreamError: not exactly one item, or one without metadata, or without a handle though there is something.
    """
    entries = list(_entries(answer, instance))
    if len(entries) != 1:
        raise _unusable(instance, f"offered {len(entries)} embeddings for one media part")
    item, _ = entries[0]
    if item.handle is None and not item.is_empty:
        raise _unusable(instance, f"gave no handle for {item.mm_hash}")
    return item


def read_description(answer: JsonObject, count: int, instance: str) -> tuple[EncodedItem, ...]:
    """The items that an instance encoded while it prefilled, in order of appearance in the prompt.

    Raises:
        UpstreamError: not every one of the `count` items is described, or one twice.
    """
    placed = [(index, item) for item, indices in _entries(answer, instance) for index in indices]
    if sorted(index for index, _ in placed) != list(range(count)):
        raise _unusable(instance, f"described items {sorted(i for i, _ in placed)} of {count}")
    return tuple(item for _, item in sorted(placed, key=lambda pair: pair[0]))


def transfer_params(items: Sequence[EncodedItem]) -> JsonObject:
    """The `ec_transfer_params` with which a consumer finds the embeddings."""
    return {
        item.mm_hash: {"parts": list(item.parts)} if item.parts else {"handle": item.handle}
        for item in items
        if item.is_offered
    }


def _entries(answer: JsonObject, instance: str) -> Iterator[tuple[EncodedItem, list[int]]]:
    params = answer.get("ec_transfer_params")
    if not isinstance(params, dict):
        raise _unusable(instance, "answered without ec_transfer_params; was it started with an encode role?")
    for mm_hash, entry in params.items():
        yield _entry(mm_hash, entry, instance)


def _entry(mm_hash: str, entry: Any, instance: str) -> tuple[EncodedItem, list[int]]:
    if not isinstance(entry, dict):
        raise _unusable(instance, f"gave no object for {mm_hash}")
    modality, metadata, indices = entry.get("modality"), entry.get("metadata"), entry.get("item_indices")
    if modality not in MODALITIES or not isinstance(metadata, dict):
        raise _unusable(instance, f"gave no usable modality and metadata for {mm_hash}")
    if not isinstance(indices, list) or not all(type(index) is int for index in indices):
        raise _unusable(instance, f"gave no item_indices for {mm_hash}")
    lora, item, shard = entry.get("lora"), entry.get("item", mm_hash), None
    match entry.get("shard"):
        case [int(index), int(count)]:
            shard = Shard(index, count)
    if not isinstance(item, str) or (shard is None) != ("shard" not in entry):
        raise _unusable(instance, f"gave no usable item and shard for {mm_hash}")
    lora = lora if isinstance(lora, str) else None
    return EncodedItem(item, modality, metadata, entry.get("handle"), lora, shard), indices


def _count(value: Any) -> int:
    return value if type(value) is int and value > 0 else 0


def _unusable(instance: str, what: str) -> UpstreamError:
    return UpstreamError(f"encode instance {instance} {what}", stage="encode")
