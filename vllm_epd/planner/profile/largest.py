# SPDX-License-Identifier: Apache-2.0
"""The largest request, batch or KV cache that a device takes, and what stops a larger one. Pure.

A device holds what `memory` describes, and of the work at hand all that is there at once:

- encode: pixels and activations of every patch of the batch, and the embeddings that come of it;
- prefill: the embeddings and the activations of every token of the batch, and their keys and values in the KV cache;
- both on one device: the embeddings and the larger of the two activations, as one comes after the other.

Embeddings and activations have what the KV cache leaves. Beside memory, a prompt is bounded by the model's context.
"""

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum

from vllm_epd.errors import ConfigError
from vllm_epd.planner.profile.media import measure
from vllm_epd.planner.profile.memory import free_bytes
from vllm_epd.planner.profile.profile import Profile
from vllm_epd.planner.workload.requests import Item
from vllm_epd.types import RoleSet

PERCENT = 100


class Bound(StrEnum):
    """What stops more."""

    MEMORY = "out of memory"
    CONTEXT = "out of context"


@dataclass(frozen=True, slots=True)
class Largest:
    """A largest number, and what stops the next.

    Attributes:
        count: of images, requests or per cent; 0 where there is not even one.
        bound: None where nothing stops more.
    """

    count: int
    bound: Bound | None


@dataclass(frozen=True, slots=True)
class Device:
    """Where it runs.

    Attributes:
        profile: of the model.
        roles: of the instance.
        memory_share: of the device's memory that may be used.
        pool_tokens: of embeddings that memory is set aside for, before KV caches have their share; None: as many as the
            batch has, out of what the KV cache leaves.
    """

    profile: Profile
    roles: RoleSet
    memory_share: float = 1.0
    pool_tokens: int | None = None


@dataclass(frozen=True, slots=True)
class Batch:
    """Equal requests.

    Attributes:
        requests: how many.
        images: of each.
        image: what each of these is.
        text_tokens: of each request.
    """

    requests: int
    images: int
    image: Item
    text_tokens: int


def most_images(device: Device, image: Item, text_tokens: int, kv_share: float) -> Largest:
    """Images of one request."""
    return _search(lambda count: what_stops(device, Batch(1, count, image, text_tokens), kv_share))


def largest_batch(device: Device, images: int, image: Item, text_tokens: int, kv_share: float) -> Largest:
    """Requests of so many images each."""
    return _search(lambda count: what_stops(device, Batch(count, images, image, text_tokens), kv_share))


def largest_kv_share(device: Device, batch: Batch) -> Largest:
    """Per cent of what weights leave that a KV cache may take; `bound` is set only where no share will do."""
    for percent in range(PERCENT, -1, -1):
        bound = what_stops(device, batch, percent / PERCENT)
        if bound is None:
            return Largest(percent, None)
        if bound is Bound.CONTEXT:
            return Largest(0, bound)
    return Largest(0, Bound.MEMORY)


def what_stops(device: Device, batch: Batch, kv_share: float) -> Bound | None:
    """What keeps a batch from a device; None if nothing does. Memory comes first."""
    memory = device.profile.memory
    try:
        free = free_bytes(device.profile, device.roles, device.memory_share)
    except ConfigError:
        return Bound.MEMORY
    each = measure(device.profile, batch.image)
    prompt = batch.images * each.tokens + batch.text_tokens
    embeddings = batch.requests * batch.images * each.tokens
    needed = _work(device, batch.requests * batch.images * each.patches, batch.requests * prompt)
    if device.pool_tokens is None:
        needed += embeddings * memory.embedding_per_token
    elif embeddings > device.pool_tokens:
        return Bound.MEMORY
    else:
        free -= device.pool_tokens * memory.embedding_per_token
    kv = int(free * kv_share) if device.roles.language_model else 0
    if needed > free - kv:
        return Bound.MEMORY
    if device.roles.prefill and prompt > memory.max_context:
        return Bound.CONTEXT
    if device.roles.language_model and batch.requests * prompt * memory.kv_per_token > kv:
        return Bound.MEMORY
    return None


def _work(device: Device, patches: int, tokens: int) -> int:
    """Bytes of activations."""
    memory = device.profile.memory
    encode = patches * memory.encode_per_patch if device.roles.encode else 0
    prefill = tokens * memory.prefill_per_token if device.roles.prefill else 0
    return max(encode, prefill)


def _search(stops: Callable[[int], Bound | None]) -> Largest:
    """The largest count that nothing stops, by doubling and halving; more of anything never needs less."""
    if (bound := stops(1)) is not None:
        return Largest(0, bound)
    low, high = 1, 2
    while (bound := stops(high)) is None:
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        found = stops(middle)
        if found is None:
            low = middle
        else:
            high, bound = middle, found
    return Largest(low, bound)
