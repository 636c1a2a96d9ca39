# SPDX-License-Identifier: Apache-2.0
import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vllm_epd.errors import ConfigError
from vllm_epd.planner.fleet import Fleet
from vllm_epd.planner.profile.memory import room, weight_bytes
from vllm_epd.planner.profile.store import load_profile
from vllm_epd.topology import Topology
from vllm_epd.types import RoleSet

PROFILE = load_profile("internvl2-26b@a100-80gb")
ROLES = ["E", "P", "D", "EP", "PD", "ED", "EPD"]


def roles(letters):
    return RoleSet.from_letters(letters)


def fleet(**fields):
    return Fleet(Topology.parse("1E1P1D"), **fields)


def test_weights_are_those_of_the_roles():
    memory = PROFILE.memory
    assert weight_bytes(memory, roles("E")) == memory.encoder
    assert weight_bytes(memory, roles("D")) == memory.language
    assert weight_bytes(memory, roles("EPD")) == memory.encoder + memory.language


def test_a_role_has_room_for_its_own_things_alone():
    encode, prefill, decode = (room(PROFILE, roles(letter), fleet()) for letter in "EPD")
    assert (encode.kv_tokens, encode.step_tokens, prefill.encode_patches, decode.encode_patches) == (0, 0, 0, 0)
    assert decode.embedding_tokens == 0
    assert min(encode.embedding_tokens, encode.encode_patches, prefill.embedding_tokens, prefill.kv_tokens) > 0


def test_the_encoders_weights_cost_room_for_keys_and_values():
    assert room(PROFILE, roles("EP"), fleet()).kv_tokens < room(PROFILE, roles("P"), fleet()).kv_tokens


@given(st.sampled_from(ROLES), st.floats(0.7, 1.0), st.floats(0.1, 0.9))
def test_all_that_there_is_room_for_fits_the_device(letters, memory_share, kv_share):
    memory = PROFILE.memory
    found = room(PROFILE, roles(letters), fleet(memory_share=memory_share, kv_share=kv_share))
    work = max(found.encode_patches * memory.encode_per_patch, found.step_tokens * memory.prefill_per_token)
    held = found.kv_tokens * memory.kv_per_token + found.embedding_tokens * memory.embedding_per_token + work
    held += weight_bytes(memory, roles(letters)) + memory.reserved
    usable = PROFILE.hardware.memory_bytes * memory_share
    largest = memory.kv_per_token + memory.embedding_per_token + memory.encode_per_patch + memory.prefill_per_token
    assert usable - largest - 2 < held <= usable


def test_weights_that_do_not_fit_are_named(replaced):
    small = msgspec.structs.replace(PROFILE.hardware, memory_bytes=40 * 2**30)
    with pytest.raises(
        ConfigError, match=r"InternVL2-26B does not fit A100-80GB as prefill: 39,[\d,]+ bytes of weights"
    ):
        room(replaced("internvl2-26b@a100-80gb", hardware=small), roles("P"), fleet())


def test_a_kv_cache_that_leaves_nothing_is_refused():
    with pytest.raises(ConfigError, match="no room for step_tokens .* kv_share 1.0"):
        room(PROFILE, roles("PD"), fleet(kv_share=1.0))
