# SPDX-License-Identifier: Apache-2.0
import pytest

from vllm_epd.planner.profile.costs import decode_s, encode_s, prefill_pairs, prefill_s
from vllm_epd.planner.profile.derive.architectures import (
    ARCHITECTURES,
    GEMMA_3_27B,
    INTERNVL2_8B,
    INTERNVL2_26B,
    MINICPM_V_2_6,
    QWEN2_5_VL_7B,
)
from vllm_epd.planner.profile.derive.cards import A100, CARDS, H100, H200
from vllm_epd.planner.profile.derive.ready import ready_profiles
from vllm_epd.planner.profile.derive.roofline import derive
from vllm_epd.planner.profile.derive.rooflines import BYTES, Rates
from vllm_epd.planner.profile.derive.software import EAGER, TODAY
from vllm_epd.planner.profile.store import READY, encode_profile


@pytest.mark.parametrize(
    ("model", "published"),
    [
        (MINICPM_V_2_6, 8_099_175_152),
        (INTERNVL2_8B, 8_075_365_376),
        (INTERNVL2_26B, 25_500_000_000),
        (QWEN2_5_VL_7B, 8_292_166_656),
        (GEMMA_3_27B, 27_432_406_640),
    ],
    ids=lambda each: getattr(each, "name", ""),
)
def test_parameters_add_up_to_those_published(model, published):
    assert model.parameters == pytest.approx(published, rel=1e-3)


def test_vision_towers_add_up_to_those_published():
    assert INTERNVL2_8B.vision.parameters == pytest.approx(304e6, rel=0.01)
    assert INTERNVL2_26B.vision.parameters == pytest.approx(5.54e9, rel=0.01)


def test_the_ready_files_are_what_the_command_writes():
    for name, profile in ready_profiles().items():
        assert (READY / name).read_bytes() == encode_profile(profile), (
            f"run python -m {derive.__module__.rpartition('.')[0]}"
        )


@pytest.mark.parametrize("model", ARCHITECTURES, ids=lambda each: each.name)
@pytest.mark.parametrize("card", CARDS, ids=lambda each: each.name)
def test_nothing_is_faster_than_the_card(model, card):
    profile = derive(model, card)
    language = model.language
    weights = language.layers * language.layer_weights
    assert prefill_s(profile.prefill, 2048, prefill_pairs(2048, 0)) > 2 * weights * 2048 / card.flops
    assert decode_s(profile.decode, 1, 0) > BYTES * weights / card.bytes_per_s
    patches = 1024
    assert encode_s(profile.encode, patches, patches**2) > (
        2 * model.vision.layers * model.vision.layer_weights * patches / card.flops
    )


@pytest.mark.parametrize("model", ARCHITECTURES, ids=lambda each: each.name)
def test_a_better_card_is_not_slower(model):
    slow, fast, faster = (derive(model, card) for card in (A100, H100, H200))
    assert slow.prefill.per_token_s > fast.prefill.per_token_s >= faster.prefill.per_token_s
    assert slow.encode.per_patch_s > fast.encode.per_patch_s >= faster.encode.per_patch_s
    assert slow.decode.base_s > fast.decode.base_s > faster.decode.base_s


@pytest.mark.parametrize("model", ARCHITECTURES, ids=lambda each: each.name)
def test_lines_are_near_the_roofline(model):
    for software in (TODAY, EAGER):
        for card in CARDS:
            fit = derive(model, card, software).fit
            assert fit["decode"].mean < 0.1
            assert fit["prefill"].mean < 0.2


def test_scores_in_memory_cost_time_and_memory():
    fused, unfused = derive(MINICPM_V_2_6, A100, TODAY), derive(MINICPM_V_2_6, A100, EAGER)
    assert unfused.encode.per_pair_s > 5 * fused.encode.per_pair_s
    assert unfused.memory.encode_per_patch > 5 * fused.memory.encode_per_patch
    assert derive(INTERNVL2_8B, A100, EAGER).encode.per_pair_s == derive(INTERNVL2_8B, A100, TODAY).encode.per_pair_s


def test_launching_kernels_bounds_a_small_encoder_on_a_fast_card():
    assert derive(INTERNVL2_8B, H100).encode.base_s > 0
    assert derive(INTERNVL2_26B, H100).encode.base_s == 0


def test_bytes_of_keys_values_and_embeddings():
    memory = derive(MINICPM_V_2_6, A100).memory
    assert (memory.kv_per_token, memory.embedding_per_token) == (2 * 28 * 4 * 128 * 2, 3584 * 2)
    assert memory.encoder + memory.language == BYTES * MINICPM_V_2_6.parameters
    assert Rates(MINICPM_V_2_6, A100, TODAY).language_launch_s == 0
