# SPDX-License-Identifier: Apache-2.0
"""Seconds, by a profile. Pure."""

from vllm_epd.planner.profile.media import Encoded
from vllm_epd.planner.profile.profile import DecodeCost, EncodeCost, Link, PrefillCost, PreprocessCost


def preprocess_s(cost: PreprocessCost, item: Encoded) -> float:
    """Of one core, for one item."""
    return (
        cost.base_s + cost.per_pixel_s * item.pixels + cost.per_patch_s * item.patches + cost.per_audio_s * item.audio_s
    )


def encode_s(cost: EncodeCost, patches: float, pairs: float) -> float:
    """Of a device, for a batch of so many patches, and pairs of patches that attention looks at."""
    return cost.base_s + cost.per_patch_s * patches + cost.per_pair_s * pairs


def prefill_s(cost: PrefillCost, tokens: float, pairs: float) -> float:
    """Of a device, for a step that computes so many tokens of prompts, which look at so many pairs of tokens."""
    return cost.base_s + cost.per_token_s * tokens + cost.per_pair_s * pairs


def decode_s(cost: DecodeCost, sequences: float, context: float) -> float:
    """Of a device, for a step that generates for so many sequences with so many tokens of context in all."""
    return cost.base_s + cost.per_sequence_s * sequences + cost.per_context_s * context


def decode_steps_s(cost: DecodeCost, sequences: int, context: float, steps: int) -> float:
    """The same for so many steps of one batch, whose context grows by one token for each sequence and step."""
    grown = sequences * steps * (steps - 1) / 2
    return steps * decode_s(cost, sequences, context) + cost.per_context_s * grown


def transfer_s(link: Link, nbytes: float) -> float:
    """Of a link, for one transfer."""
    return link.latency_s + nbytes / link.bytes_per_s


def prefill_pairs(computed: float, before: float) -> float:
    """Pairs that `computed` tokens look at, in order, when `before` tokens come before them."""
    return computed * before + computed * (computed + 1) / 2
