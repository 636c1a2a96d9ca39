# SPDX-License-Identifier: Apache-2.0
"""From a fleet to what `vllm-epd up --config FILE` is told. Pure."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from vllm_epd.planner.fleet import Fleet
from vllm_epd.planner.profile.memory import room
from vllm_epd.planner.profile.profile import Profile
from vllm_epd.planner.search.demand import Sizes
from vllm_epd.topology import Topology
from vllm_epd.types import RoleSet

IRP_AUTO = "auto"
LEAST_STEP = 2048
"""Tokens of a step that an encoder is allowed at least; vLLM counts those of items against it."""


@dataclass(frozen=True, slots=True)
class Deployment:
    """What is to run.

    Attributes:
        model: as for `vllm serve`.
        topology: instances.
        roles: arguments of `vllm serve`, by letters of the roles.
        router: settings of the router, by name.
    """

    model: str
    topology: Topology
    roles: Mapping[str, Sequence[str]]
    router: Mapping[str, str | float]

    def yaml(self) -> str:
        """The file's content."""
        lines = [f"model: {json.dumps(self.model)}", f"topology: {self.topology}", "roles:"]
        lines += [f"  {letters}: {json.dumps(list(arguments))}" for letters, arguments in self.roles.items()]
        lines += ["router:", *(f"  {name}: {json.dumps(value)}" for name, value in self.router.items())]
        return "\n".join(lines) + "\n"


def deployment(
    profile: Profile, model: str, fleet: Fleet, whole: Topology, largest: int, ttft_slo_s: float
) -> Deployment:
    """Say how to run a fleet.

    Args:
        profile: of the model.
        model: as for `vllm serve`.
        fleet: how it is run.
        whole: how many instances of each kind.
        largest: tokens of the largest item, which an encoder's batch is measured in.
        ttft_slo_s: for orders that go by it.
    """
    return Deployment(
        model=model,
        topology=whole,
        roles={group.roles.letters: _arguments(profile, fleet, group.roles, largest) for group in whole.groups},
        router={
            **{f"{role}_policy": policy for role, policy in fleet.policies.items()},
            **{f"{role}_order": order for role, order in fleet.orders.items()},
            "irp_degree": IRP_AUTO if fleet.irp_degree is None else str(fleet.irp_degree),
            "ttft_slo_s": ttft_slo_s,
        },
    )


def _arguments(profile: Profile, fleet: Fleet, kind: RoleSet, largest: int) -> list[str]:
    limits = fleet.limits
    sequences, tokens = limits.decode_sequences, limits.batched_tokens
    if not kind.language_model:
        sequences, tokens = limits.encode_items, max(LEAST_STEP, limits.encode_items * largest)
    elif not kind.decode:
        sequences = limits.prefill_sequences
    arguments = ["--max-num-seqs", str(sequences), "--max-num-batched-tokens", str(max(sequences, tokens))]
    if profile.hardware.device != "cuda":
        return arguments
    pool = 0
    if kind.encode or kind.prefill:
        pool = room(profile, kind, fleet).embedding_tokens * profile.memory.embedding_per_token
        arguments += ["--epd-pool-bytes", str(pool)]
    if kind.language_model:
        share = fleet.memory_share - pool / profile.hardware.memory_bytes
        arguments += ["--gpu-memory-utilization", f"{share:.3f}"]
    return arguments


def largest_item(requests: Sequence[Sizes]) -> int:
    """Tokens of the largest item; 0 without any."""
    return max((item.tokens for each in requests for item in each.media), default=0)
