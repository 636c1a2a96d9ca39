# SPDX-License-Identifier: Apache-2.0
"""From roles to vLLM's arguments."""

from typing import Any

import pytest

from vllm_epd.errors import RoleConflictError
from vllm_epd.roles.derive import CPU_ENCODES, ENCODER_MEMORY_FRACTION, IN_PROCESS_EXECUTOR, derive
from vllm_epd.types import RoleSet


def roles(text: str) -> RoleSet:
    return RoleSet.parse(text)


@pytest.mark.parametrize(
    ("text", "ec_role", "kv_role", "tower"),
    [
        ("encode", "ec_producer", None, True),
        ("prefill", "ec_consumer", "kv_producer", False),
        ("decode", "ec_consumer", "kv_consumer", False),
        ("prefill+decode", "ec_consumer", None, False),
        ("encode+prefill", "ec_both", "kv_producer", True),
        ("encode+decode", "ec_both", "kv_consumer", True),
        ("encode+prefill+decode", "ec_both", None, True),
    ],
)
def test_sides(text: str, ec_role: str, kv_role: str | None, tower: bool) -> None:
    derived = derive(roles(text), {}, cpu=False)
    assert derived.ec_role == ec_role
    assert derived.kv_role == kv_role
    assert ("limit_mm_per_prompt" not in derived.arguments) is tower
    assert derived.tower is tower


def test_an_encoder_demands_little_memory_unless_told_otherwise() -> None:
    assert derive(roles("encode"), {}, cpu=False).arguments == {"gpu_memory_utilization": ENCODER_MEMORY_FRACTION}
    assert derive(roles("encode"), {"gpu_memory_utilization": 0.5}, cpu=False).arguments == {}


@pytest.mark.parametrize(
    ("text", "given", "cpu", "expected"),
    [
        ("encode", {}, True, CPU_ENCODES),
        ("encode", {}, False, None),
        ("encode", {"max_num_seqs": 8}, True, None),
        ("encode+prefill", {}, True, None),
    ],
)
def test_on_the_cpu_an_encoder_has_few_at_once(
    text: str, given: dict[str, Any], cpu: bool, expected: int | None
) -> None:
    assert derive(roles(text), given, cpu=cpu).arguments.get("max_num_seqs") == expected


@pytest.mark.parametrize(
    ("text", "given", "flag"),
    [
        ("encode", {"ec_transfer_config": object()}, "--ec-transfer-config"),
        ("prefill", {"kv_transfer_config": object()}, "--kv-transfer-config"),
        ("encode", {"enable_prefix_caching": True}, "--enable-prefix-caching"),
        ("decode", {"language_model_only": True}, "--language-model-only"),
        ("prefill+decode", {"mm_encoder_only": True}, "--mm-encoder-only"),
        ("prefill", {"limit_mm_per_prompt": {"image": 4}}, "--limit-mm-per-prompt"),
        ("prefill", {"exclude_tools_when_tool_choice_none": True}, "--exclude-tools-when-tool-choice-none"),
    ],
)
def test_a_contradiction_names_the_role_and_the_flag(text: str, given: dict[str, Any], flag: str) -> None:
    with pytest.raises(RoleConflictError) as caught:
        derive(roles(text), given, cpu=False)
    assert f"--epd-role {text}" in str(caught.value)
    assert flag in str(caught.value)


@pytest.mark.parametrize(
    ("text", "given"),
    [
        ("prefill+decode", {"kv_transfer_config": object()}),
        ("prefill", {"limit_mm_per_prompt": {"image": 0}}),
        ("encode", {"limit_mm_per_prompt": {"image": 4}}),
        ("prefill", {"enable_prefix_caching": True, "max_model_len": 4096}),
    ],
)
def test_what_does_not_contradict_is_left_to_the_user(text: str, given: dict[str, Any]) -> None:
    derive(roles(text), given, cpu=False)


@pytest.mark.parametrize(("given", "expected"), [({}, True), ({"tensor_parallel_size": 2}, False)])
def test_on_the_cpu_one_worker_runs_inside_the_engine_core(given: dict[str, Any], expected: bool) -> None:
    arguments = derive(roles("decode"), given, cpu=True).arguments
    assert (arguments.get("distributed_executor_backend") == IN_PROCESS_EXECUTOR) is expected


@pytest.mark.parametrize(("text", "expected"), [("encode", None), ("prefill", {}), ("decode", {})])
def test_options_for_decoding_media_stay_with_those_who_decode_it(text: str, expected: dict[str, Any] | None) -> None:
    given = {"media_io_kwargs": {"video": {"num_frames": 8}}}
    assert derive(roles(text), given, cpu=False).arguments.get("media_io_kwargs") == expected
