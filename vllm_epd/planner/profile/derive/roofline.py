# SPDX-License-Identifier: Apache-2.0
"""A profile from an architecture, a card and the software between them. Pure.

The roofline says what each piece of work takes; a step takes the larger of what the card and what the host needs, which
is no line. The linear costs of a profile keep the roofline's slopes and get the base that comes nearest over the range
of steps that is of interest; `fit` says how near.
"""

from collections.abc import Sequence
from typing import TypeVar

import msgspec

from vllm_epd.planner.profile.derive.architectures import GEMMA_3_27B, MINICPM_V_2_6, QWEN2_5_VL_7B, Architecture
from vllm_epd.planner.profile.derive.cards import Card
from vllm_epd.planner.profile.derive.preprocessing import NOTE, SLICES, TILES, WHOLE, with_decoding
from vllm_epd.planner.profile.derive.rooflines import BYTES, Rates, encode_held, prefill_held
from vllm_epd.planner.profile.derive.software import TODAY, Software
from vllm_epd.planner.profile.fit import relative_fit
from vllm_epd.planner.profile.profile import (
    DecodeCost,
    EncodeCost,
    Fit,
    Hardware,
    Link,
    Memory,
    Native,
    PrefillCost,
    PreprocessCost,
    Profile,
)

Costs = TypeVar("Costs", bound=msgspec.Struct)

RESERVED = 2**30
"""Bytes for the CUDA context, libraries and fragments; an assumption."""

TCP_BYTES_PER_S = 1.2e9
"""Of one TCP stream between hosts; an assumption."""

TILES_TOGETHER = (1, 2, 3, 5, 8, 13, 26, 52, 104)
PROMPT_TOKENS = (64, 128, 256, 512, 1024, 2048, 4096, 8192)
SEQUENCES = (1, 2, 4, 8, 16, 32, 64, 128)
CONTEXTS = (256, 1024, 4096)

Terms = tuple[float, float]
"""What a step takes by its slopes, and what it takes in all, in seconds."""

PREPROCESSING = {MINICPM_V_2_6.name: SLICES, QWEN2_5_VL_7B.name: WHOLE, GEMMA_3_27B.name: TILES}


def derive(model: Architecture, card: Card, software: Software = TODAY) -> Profile:
    """The profile of a model on a card."""
    rates = Rates(model, card, software)
    encode_base, encode_fit = _base(encode_steps(rates))
    prefill_base, prefill_fit = _base(prefill_steps(rates))
    decode_base, decode_fit = _base(decode_steps(rates))
    return Profile(
        model=model.name,
        origin="derived",
        hardware=Hardware(card.name, "cuda", card.memory_bytes, card.cores),
        media=model.media,
        preprocess=_rounded(_preprocess(model, software)),
        encode=_rounded(EncodeCost(encode_base, rates.encode_patch_s, rates.encode_pair_s)),
        prefill=_rounded(PrefillCost(prefill_base, rates.prefill_token_s, rates.prefill_pair_s)),
        decode=_rounded(DecodeCost(decode_base, rates.decode_between_s, rates.decode_context_s)),
        links={name: _rounded(link) for name, link in _links(card).items()},
        memory=_memory(rates),
        software={"serving": software.name},
        fit={"encode": _rounded(encode_fit), "prefill": _rounded(prefill_fit), "decode": _rounded(decode_fit)},
        notes=f"From operations and bytes; {card.products:.0%} of peak in products, {card.attention:.0%} in fused "
        f"attention, {card.memory:.0%} of memory bandwidth. `fit` compares with the roofline. {NOTE}"
        f"{'' if software.decodes else ', without decoding of files'}. No time for HTTP or tokenising.",
    )


def encode_steps(rates: Rates) -> list[Terms]:
    """Batches of some tiles."""
    patches = tile_patches(rates.model)
    steps = []
    for tiles in TILES_TOGETHER:
        card = tiles * (patches * rates.encode_patch_s + patches**2 * rates.encode_pair_s)
        steps.append((card, max(card, rates.encode_launch_s)))
    return steps


def prefill_steps(rates: Rates) -> list[Terms]:
    """Prompts of some lengths."""
    steps = []
    for tokens in PROMPT_TOKENS:
        card = tokens * rates.prefill_token_s + tokens * (tokens + 1) / 2 * rates.prefill_pair_s
        steps.append((card, max(card, rates.weights_s, rates.language_launch_s) + rates.software.step_s))
    return steps


def decode_steps(rates: Rates) -> list[Terms]:
    """Some sequences with some context each."""
    steps = []
    for sequences in SEQUENCES:
        for context in CONTEXTS:
            slopes = sequences * (rates.decode_between_s + context * rates.decode_context_s)
            card = max(rates.weights_s, sequences * rates.decode_products_s) + slopes
            steps.append((slopes, max(card, rates.language_launch_s) + rates.software.step_s))
    return steps


def tile_patches(model: Architecture) -> int:
    """Patches of a tile; of an image of average size where there are no tiles."""
    if isinstance(model.media, Native):
        return 4096
    return (model.media.tile // model.media.patch) ** 2


def _base(steps: Sequence[Terms]) -> tuple[float, Fit]:
    """The base that, beside the slopes, comes nearest by the squares of relative errors."""
    weights = [1 / whole**2 for _, whole in steps]
    base = sum(weight * (whole - slope) for weight, (slope, whole) in zip(weights, steps, strict=True)) / sum(weights)
    return base, relative_fit([base + slope for slope, _ in steps], [whole for _, whole in steps])


def _rounded(costs: Costs) -> Costs:
    """With four digits, which is more than they are worth."""
    values = {name: _digits(value) for name, value in msgspec.structs.asdict(costs).items()}
    return msgspec.structs.replace(costs, **values)


def _digits(value: float) -> float:
    return float(f"{value:.4g}") if isinstance(value, float) else value


def _preprocess(model: Architecture, software: Software) -> PreprocessCost:
    cost = PREPROCESSING.get(model.name, TILES)
    return with_decoding(cost) if software.decodes else cost


def _links(card: Card) -> dict[str, Link]:
    """By tier; what goes through the host's memory crosses its bus twice. Latencies are assumptions."""
    return {
        "shm": Link(50e-6, card.pcie_bytes_per_s * card.links / 2),
        "cuda_ipc": Link(20e-6, card.nvlink_bytes_per_s * card.links),
        "rdma": Link(30e-6, card.network_bytes_per_s * card.links),
        "tcp": Link(200e-6, TCP_BYTES_PER_S),
    }


def _memory(rates: Rates) -> Memory:
    model = rates.model
    patches = tile_patches(model)
    return Memory(
        encoder=BYTES * (model.vision.parameters + model.projector.parameters),
        language=BYTES * model.language.parameters,
        kv_per_token=BYTES * model.language.kv_numbers,
        embedding_per_token=BYTES * model.language.hidden,
        encode_per_patch=encode_held(model.vision, patches, rates.unfused),
        prefill_per_token=prefill_held(model.language),
        reserved=RESERVED,
        max_context=model.language.max_context,
    )
