# SPDX-License-Identifier: Apache-2.0
"""A model whose costs are round numbers."""

import msgspec
import pytest

from vllm_epd.planner.profile.profile import (
    DecodeCost,
    EncodeCost,
    Hardware,
    Link,
    Memory,
    PrefillCost,
    PreprocessCost,
    Profile,
    Tiled,
)

PATCHES = 1024
"""Of one tile."""
TILE_TOKENS = 64
PREPROCESS_S = 0.25
TILE_S = 1.0
TOKEN_S = 0.001
STEP_S, SEQUENCE_S, CONTEXT_S = 0.01, 0.001, 1e-6
LATENCY_S, BYTES_PER_S = 0.5, 100.0

PROFILE = Profile(
    model="round",
    origin="derived",
    hardware=Hardware(name="card", device="cuda", memory_bytes=1_000_000, cores=4),
    media=Tiled(rule="aspect", tile=448, patch=14, most=4, thumbnail=False, tokens=TILE_TOKENS),
    preprocess=PreprocessCost(base_s=PREPROCESS_S, per_pixel_s=0.0, per_patch_s=0.0),
    encode=EncodeCost(base_s=0.0, per_patch_s=TILE_S / PATCHES),
    prefill=PrefillCost(base_s=0.0, per_token_s=TOKEN_S, per_pair_s=0.0),
    decode=DecodeCost(base_s=STEP_S, per_sequence_s=SEQUENCE_S, per_context_s=CONTEXT_S),
    links={"link": Link(latency_s=LATENCY_S, bytes_per_s=BYTES_PER_S), "none": Link(latency_s=0.0, bytes_per_s=1e30)},
    memory=Memory(
        encoder=1000,
        language=2000,
        kv_per_token=1,
        embedding_per_token=1,
        encode_per_patch=1,
        prefill_per_token=1,
        reserved=0,
        max_context=100_000,
    ),
)


@pytest.fixture
def profile():
    """The model, with other parts where they are given."""

    def make(**parts):
        return msgspec.structs.replace(PROFILE, **parts)

    return make
