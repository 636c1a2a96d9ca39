# SPDX-License-Identifier: Apache-2.0
"""What the requests of a workload need of an instance's memory, and what is lacking there. Pure."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from vllm_epd.errors import ConfigError
from vllm_epd.planner.fleet import Fleet, Limits
from vllm_epd.planner.profile.memory import Room, room, weight_bytes
from vllm_epd.planner.profile.profile import Profile
from vllm_epd.planner.search.demand import Sizes
from vllm_epd.types import RoleSet

GB = 1e9


@dataclass(frozen=True, slots=True)
class Largest:
    """The largest of each that some request needs.

    Attributes:
        prompt: tokens.
        context: tokens of prompt and output.
        embeddings: tokens of all its media.
        patches: of one item.
    """

    prompt: int
    context: int
    embeddings: int
    patches: int

    @classmethod
    def of(cls, requests: Iterable[Sizes]) -> "Largest":
        """Of all of them."""
        known = list(requests)
        return cls(
            prompt=max(each.prompt for each in known),
            context=max(each.context for each in known),
            embeddings=max(each.embeddings for each in known),
            patches=max((item.patches for each in known for item in each.media), default=0),
        )


def check_context(profile: Profile, largest: Largest) -> None:
    """Refuse requests that the model does not take on any hardware.

    Raises:
        ConfigError: a request is longer than the model's context.
    """
    if largest.context > profile.memory.max_context:
        over = largest.context - profile.memory.max_context
        raise ConfigError(
            f"{profile.model} takes {profile.memory.max_context:,} tokens of context, and a request of the workload has"
            f" {largest.context:,} with its media and its output: {over:,} too many"
        )


def shortage_of(profile: Profile, base: Fleet, largest: Largest) -> Callable[[RoleSet, Limits], str | None]:
    """Says what an instance lacks to take the largest request, and batches of the largest items up to its limits."""
    found: dict[RoleSet, Room | str] = {}

    def shortage(kind: RoleSet, limits: Limits) -> str | None:
        if kind not in found:
            found[kind] = _room(profile, kind, base)
        has = found[kind]
        return has if isinstance(has, str) else _lacking(has, kind, limits, largest)

    return shortage


def _room(profile: Profile, kind: RoleSet, base: Fleet) -> Room | str:
    memory = profile.memory
    usable = profile.hardware.memory_bytes * base.memory_share
    needed = weight_bytes(memory, kind) + memory.reserved
    if needed >= usable:
        parts = [("the encoder's", memory.encoder)] * kind.encode
        parts += [("the language model's", memory.language)] * kind.language_model
        names = " and ".join(f"{name} {nbytes / GB:.1f} GB" for name, nbytes in parts)
        return (
            f"{names} of weights, with {memory.reserved / GB:.1f} GB for the runtime, do not fit"
            f" {base.memory_share:g} of {profile.hardware.memory_bytes / GB:.1f} GB:"
            f" {(needed - usable) / GB:.1f} GB are lacking"
        )
    try:
        return room(profile, kind, base)
    except ConfigError as error:
        return str(error)


def _lacking(has: Room, kind: RoleSet, limits: Limits, largest: Largest) -> str | None:
    step = max(limits.batched_tokens if kind.prefill else 0, limits.decode_sequences if kind.decode else 0)
    items = f"a batch of {limits.encode_items} of the largest item" if limits.encode_items > 1 else "the largest item"
    needs = (
        (kind.encode, "patches", items, limits.encode_items * largest.patches, has.encode_patches),
        (kind.language_model, "tokens", "a step within its limits", step, has.step_tokens),
        (kind.decode, "tokens of KV cache", "the largest request", largest.context, has.kv_tokens),
        (kind.prefill, "tokens of KV cache", "the prompt of the largest request", largest.prompt, has.kv_tokens),
        (
            kind.encode or kind.prefill,
            "tokens of embeddings",
            "the media of one request",
            largest.embeddings,
            has.embedding_tokens,
        ),
    )
    for concerns, unit, what, needed, room_for in needs:
        if concerns and needed > room_for:
            return (
                f"{what} needs {needed:,} {unit}, and there is room for {room_for:,}: {needed - room_for:,} are lacking"
            )
    return None
