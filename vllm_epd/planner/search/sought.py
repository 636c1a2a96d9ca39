# SPDX-License-Identifier: Apache-2.0
"""What a plan is asked for, and the ways to share out the work among which it chooses. Pure."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

from vllm_epd.errors import ConfigError
from vllm_epd.planner.fleet import Fleet
from vllm_epd.planner.profile.profile import Profile
from vllm_epd.planner.search.families import prefill_decode, replicated
from vllm_epd.planner.search.objective import Slo
from vllm_epd.planner.search.space import Choices, Space
from vllm_epd.planner.workload.requests import Request
from vllm_epd.topology import Topology


class Way(StrEnum):
    """How stages are shared out over instances; the first two are the baselines."""

    REPLICATED = "replicated"
    PREFILL_DECODE = "prefill-decode"
    CO_LOCATED = "co-located"
    ENCODE_APART = "encode apart"

    @property
    def baseline(self) -> bool:
        """Whether encode is where prefill is, as everybody has it."""
        return self in (Way.REPLICATED, Way.PREFILL_DECODE)


SHARES = {Way.REPLICATED: 0.25, Way.PREFILL_DECODE: 0.2, Way.CO_LOCATED: 0.275, Way.ENCODE_APART: 0.275}
"""Of the trials and the time. Replicas have the fewest topologies and the dearest runs."""
LEAST_LOOKS = 24
"""Fleets of each way that are looked at in any case, unless fewer trials are asked for: a way that was not sought well
is not to lose for that."""


@dataclass(frozen=True, slots=True)
class Problem:
    """What a plan is for.

    Attributes:
        profile: the model on its hardware.
        requests: of a workload, for a seed, so many.
        slo: what is promised.
        gpus: that there are.
        rate: requests in a second for which the fewest GPUs are sought; None seeks the highest rate for all GPUs.
        base: what is given about the fleet.
        choices: what is not.
        seed: of all that is random.
    """

    profile: Profile
    requests: Callable[[int, int], Sequence[Request]]
    slo: Slo
    gpus: int
    rate: float | None = None
    base: Fleet = field(default_factory=lambda: Fleet(Topology(())))
    choices: Choices = Choices()
    seed: int = 0

    def __post_init__(self) -> None:
        if self.gpus < 1:
            raise ConfigError(f"a fleet needs at least 1 GPU, got {self.gpus}")
        if self.rate is not None and not self.rate > 0:
            raise ConfigError(f"the rate is more than 0 requests/s, got {self.rate}")


@dataclass(frozen=True, slots=True)
class Step:
    """How far a search is.

    Attributes:
        what: is being done.
        done: part of it that is over, from 0 to 1.
        best: the best topology so far.
        value: how good that is.
    """

    what: str
    done: float
    best: str = ""
    value: float = 0.0


Progress = Callable[[Step], None]


def ways(space: Space, media: bool) -> dict[Way, Space]:
    """The parts of a space; those without any fleet are left out."""
    plain, pair = replicated(media), prefill_decode(media)
    apart = [family for family in space.limits if any(kind.encode and not kind.language_model for kind in family)]
    parts = {
        Way.REPLICATED: space.only(plain),
        Way.PREFILL_DECODE: space.only(pair),
        Way.CO_LOCATED: space.without(plain, pair, *apart),
        Way.ENCODE_APART: space.only(*apart),
    }
    return {way: part for way, part in parts.items() if part.limits}
