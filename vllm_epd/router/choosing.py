# SPDX-License-Identifier: Apache-2.0
"""The policy of each stage at work: who of several serves next. Pure."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol, TypeVar

from vllm_epd.router.policies import Load, Policy, cache_aware
from vllm_epd.types import Role


class Loaded(Protocol):
    """An instance, as far as a policy looks at it."""

    @property
    def load(self) -> Load:
        """What it has to do already."""


L = TypeVar("L", bound=Loaded)


class Chooser:
    """Applies the policy of each stage and counts its turns."""

    def __init__(self, policies: Mapping[Role, Policy]) -> None:
        self._policies = policies
        self._turns: Counter[Role] = Counter()

    def asks_who_holds(self, stage: Role) -> bool:
        """Whether the choice for a stage depends on what instances hold."""
        return self._policies[stage] is cache_aware

    def pick(self, stage: Role, candidates: Sequence[L], holds: Callable[[L], float] | None = None) -> L:
        """Choose one of at least one candidate; count it as busy before anything else is awaited.

        Args:
            stage: whose policy decides.
            candidates: to choose from.
            holds: how much of what is to be done each need not do again, in tokens; asked only where that matters.
        """
        turn = self._turns[stage]
        self._turns[stage] = turn + 1
        if len(candidates) == 1:
            return candidates[0]
        loads = [each.load for each in candidates]
        if holds is not None and self.asks_who_holds(stage):
            loads = [
                Load(load.outstanding, load.work, holds(each)) for load, each in zip(loads, candidates, strict=True)
            ]
        return candidates[self._policies[stage](loads, turn)]
