# SPDX-License-Identifier: Apache-2.0
"""From one role to everything vLLM must be told. Pure: flags in, changes out."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from vllm_epd.errors import RoleConflictError
from vllm_epd.types import RoleSet

NO_TOWER_LIMITS: Mapping[str, int] = {"image": 0, "video": 0, "audio": 0, "vision_chunk": 0}
"""vLLM leaves out a modality's tower when its limit is 0."""

ENCODER_MEMORY_FRACTION = 0.1
"""An encoder has no KV cache; this is only the free memory that vLLM demands at start."""

IN_PROCESS_EXECUTOR = "vllm.v1.executor.uniproc_executor.UniProcExecutor"
"""By its path: by its name, vLLM's CPU platform replaces it with worker processes. Their message queues spin for a
second after each step, in the engine core and in the worker, and starve a machine with few cores."""

CPU_ENCODES = 2
"""Requests that an encoder on a CPU has in one step. A batch of more is not encoded faster, and the first of it waits
for the last; with one alone, the engine is idle between steps."""

SEVERAL_WORKERS = frozenset(
    {"distributed_executor_backend", "tensor_parallel_size", "pipeline_parallel_size", "data_parallel_size"}
)


@dataclass(frozen=True, slots=True)
class Derived:
    """What a role means for vLLM.

    Attributes:
        ec_role: `ec_producer`, `ec_consumer` or `ec_both`.
        kv_role: `kv_producer` or `kv_consumer`; None where prefill and decode stay together.
        arguments: values for vLLM's own arguments, by their names.
        tower: whether the instance loads the encoders.
        language_model: whether it loads the language model.
    """

    ec_role: str
    kv_role: str | None
    arguments: Mapping[str, Any] = field(default_factory=dict)
    tower: bool = True
    language_model: bool = True


def derive(roles: RoleSet, given: Mapping[str, Any], *, cpu: bool) -> Derived:
    """Derive vLLM's configuration from `roles`.

    Args:
        roles: what the instance is to be.
        given: vLLM's arguments that the user set, by name.
        cpu: whether vLLM runs on the CPU.

    Raises:
        RoleConflictError: the user set something that the role needs otherwise.
    """
    _check_conflicts(roles, given)
    arguments: dict[str, Any] = {}
    if not roles.encode:
        arguments["limit_mm_per_prompt"] = dict(NO_TOWER_LIMITS)
        if "media_io_kwargs" in given:
            # They go into the hash of an item; here, where nothing is decoded, they would only change its key.
            arguments["media_io_kwargs"] = {}
    if not roles.language_model and "gpu_memory_utilization" not in given:
        arguments["gpu_memory_utilization"] = ENCODER_MEMORY_FRACTION
    if cpu and not roles.language_model and "max_num_seqs" not in given:
        arguments["max_num_seqs"] = CPU_ENCODES
    if cpu and not given.keys() & SEVERAL_WORKERS:
        arguments["distributed_executor_backend"] = IN_PROCESS_EXECUTOR
    return Derived(
        ec_role=_ec_role(roles),
        kv_role=_kv_role(roles),
        arguments=arguments,
        tower=roles.encode,
        language_model=roles.language_model,
    )


def _ec_role(roles: RoleSet) -> str:
    if not roles.language_model:
        return "ec_producer"
    return "ec_both" if roles.encode else "ec_consumer"


def _kv_role(roles: RoleSet) -> str | None:
    if roles.prefill == roles.decode:
        return None
    return "kv_producer" if roles.prefill else "kv_consumer"


def _check_conflicts(roles: RoleSet, given: Mapping[str, Any]) -> None:
    for name, why in _conflicts(roles).items():
        if name in given:
            raise RoleConflictError(str(roles), "--" + name.replace("_", "-"), why)
    limits = given.get("limit_mm_per_prompt")
    if limits and not roles.encode and any(_count(limit) > 0 for limit in limits.values()):
        raise RoleConflictError(
            str(roles),
            f"--limit-mm-per-prompt {limits}",
            "this role loads no encoder, so all its limits are 0; set limits on encode instances",
        )


def _conflicts(roles: RoleSet) -> dict[str, str]:
    conflicts = {
        "ec_transfer_config": "the role configures the embedding connector; leave the flag out",
        "convert": "a role serves generation",
        "headless": "an instance has an API server of its own",
    }
    if roles.prefill != roles.decode:
        conflicts["kv_transfer_config"] = "the role configures the KV connector; leave the flag out"
        conflicts["exclude_tools_when_tool_choice_none"] = "prefill and decode would see different prompts"
    if roles.language_model:
        conflicts["mm_encoder_only"] = "the role runs the language model"
    else:
        conflicts["kv_transfer_config"] = "an encoder has no KV cache"
        conflicts["enable_prefix_caching"] = "an encoder has no KV cache"
        conflicts["speculative_config"] = "an encoder decodes nothing"
    conflicts["language_model_only"] = (
        "the role encodes" if roles.encode else "the role takes in embeddings; it loads no encoder as it is"
    )
    return conflicts


def _count(limit: Any) -> int:
    return int(limit.get("count", 0)) if isinstance(limit, Mapping) else int(limit)
