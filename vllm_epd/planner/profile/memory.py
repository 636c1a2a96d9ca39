# SPDX-License-Identifier: Apache-2.0
"""What an instance has room for, beside the weights of its roles. Pure.

The memory of a device that may be used holds, by role:

- what the runtime reserves, and the weights: the encoder's for encode, the language model's for prefill and decode;
- the KV cache, for prefill and decode: `kv_share` of what is left;
- the pool of embeddings, for encode and prefill: `EMBEDDING_SHARE` of what is left then;
- working memory, in all that remains: of an encode batch (pixels and activations) or of a step of the language model,
  whichever is larger, since a device does one of them at a time.
"""

from dataclasses import dataclass

from vllm_epd.errors import ConfigError
from vllm_epd.planner.fleet import Fleet
from vllm_epd.planner.profile.profile import Memory, Profile
from vllm_epd.types import RoleSet

EMBEDDING_SHARE = 0.2
"""Of what KV caches leave, for embeddings; they take a few per cent of what the work on them takes."""


@dataclass(frozen=True, slots=True)
class Room:
    """What one instance can hold; 0 for what its roles do not need.

    Attributes:
        kv_tokens: in its KV cache.
        embedding_tokens: in its pool.
        encode_patches: that an encode batch may have.
        step_tokens: that a step of the language model may have.
    """

    kv_tokens: int
    embedding_tokens: int
    encode_patches: int
    step_tokens: int


def room(profile: Profile, roles: RoleSet, fleet: Fleet) -> Room:
    """What an instance of these roles has room for.

    Raises:
        ConfigError: its weights do not fit, or nothing beside them.
    """
    memory = profile.memory
    free = free_bytes(profile, roles, fleet.memory_share)
    kv = int(free * fleet.kv_share) if roles.language_model else 0
    pool = int((free - kv) * EMBEDDING_SHARE) if roles.encode or roles.prefill else 0
    work = free - kv - pool
    found = Room(
        kv_tokens=_count(kv, memory.kv_per_token),
        embedding_tokens=_count(pool, memory.embedding_per_token),
        encode_patches=_count(work, memory.encode_per_patch) if roles.encode else 0,
        step_tokens=_count(work, memory.prefill_per_token) if roles.language_model else 0,
    )
    _check(profile, roles, fleet, found)
    return found


def free_bytes(profile: Profile, roles: RoleSet, memory_share: float) -> int:
    """What the weights of these roles leave of a device.

    Raises:
        ConfigError: nothing, or less.
    """
    usable = int(profile.hardware.memory_bytes * memory_share)
    weights = weight_bytes(profile.memory, roles)
    free = usable - weights - profile.memory.reserved
    if free <= 0:
        raise ConfigError(
            f"{profile.model} does not fit {profile.hardware.name} as {roles}: {weights:,} bytes of weights and"
            f" {profile.memory.reserved:,} reserved, but only {usable:,} bytes may be used ({memory_share:.0%} of"
            f" {profile.hardware.memory_bytes:,}); take a card with more memory, or split the roles"
        )
    return free


def weight_bytes(memory: Memory, roles: RoleSet) -> int:
    """Of the parts of the model that these roles run."""
    return memory.encoder * roles.encode + memory.language * roles.language_model


def _count(nbytes: int, each: int) -> int:
    return nbytes // each if each else 0


def _check(profile: Profile, roles: RoleSet, fleet: Fleet, found: Room) -> None:
    """Refuse an instance that could not take a single token or patch."""
    needed = {"kv_tokens": roles.language_model, "step_tokens": roles.language_model, "encode_patches": roles.encode}
    if missing := [name for name, is_needed in needed.items() if is_needed and not getattr(found, name)]:
        raise ConfigError(
            f"{profile.model} on {profile.hardware.name} as {roles} has no room for {' and '.join(missing)} beside its"
            f" weights with memory_share {fleet.memory_share} and kv_share {fleet.kv_share}; raise memory_share, or"
            " bring kv_share nearer to the middle"
        )
