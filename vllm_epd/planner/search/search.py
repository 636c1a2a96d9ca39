# SPDX-License-Identifier: Apache-2.0
"""The search: Optuna proposes, a simulation says how good that is. Deterministic where the number of trials ends it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, TypeVar

import optuna

from vllm_epd.planner.fleet import Fleet
from vllm_epd.planner.search.families import name
from vllm_epd.planner.search.objective import Objective, Score
from vllm_epd.planner.search.space import Space, walk

T = TypeVar("T")

STARTUP = 12
"""Fleets that are drawn without regard to others, beside those that are given."""


@dataclass(frozen=True, slots=True)
class Budget:
    """When a search ends.

    Attributes:
        trials: fleets that it may look at.
        seconds: that it may take; None for as long as it takes.
        least: fleets that it looks at before time ends it.
    """

    trials: int
    seconds: float | None = None
    least: int = 0

    def part(self, share: float) -> "Budget":
        """So much of it."""
        seconds = None if self.seconds is None else self.seconds * share
        return replace(self, trials=max(1, round(self.trials * share)), seconds=seconds)


@dataclass(frozen=True, slots=True)
class Trial:
    """A fleet, and how good it is."""

    fleet: Fleet
    score: Score


Progress = Callable[[int, Trial], None]
"""What is told after each trial: how many there were, and the best so far."""


def search(
    space: Space,
    objective: Objective,
    starts: Sequence[Fleet],
    seed: int,
    budget: Budget,
    clock: Callable[[], float],
    progress: Progress,
) -> list[Trial]:
    """Look for the best fleet.

    Args:
        space: where.
        objective: what is best.
        starts: fleets of the space to look at first.
        seed: of what is drawn.
        budget: when to end; all of `starts` are looked at in any case.
        clock: seconds, for the budget.
        progress: is told.

    Returns:
        Different fleets, the best first; of equals the one that was found first.
    """
    study = _study(seed)
    for start in starts:
        study.enqueue_trial(_parameters(space, start))
    end = None if budget.seconds is None else clock() + budget.seconds
    seen: dict[str, Trial] = {}
    best: Trial | None = None
    for number in range(max(budget.trials, len(starts))):
        asked = study.ask()
        fleet = walk(space, _Asking(asked))
        key = repr(fleet)
        if key not in seen:
            seen[key] = Trial(fleet, objective.score(fleet, best.score if best else None))
        trial = seen[key]
        study.tell(asked, trial.score.value)
        if best is None or _rank(trial) > _rank(best):
            best = trial
        progress(number + 1, best)
        late = end is not None and number + 1 >= max(len(starts), budget.least) and clock() >= end
        if late or objective.enough(best.score):
            break
    return sorted(seen.values(), key=_rank, reverse=True)


def _parameters(space: Space, fleet: Fleet) -> dict[str, Any]:
    """What a sampler has to propose for a fleet of the space."""
    knowing = _Knowing(
        {
            "kinds": name(tuple(group.roles for group in fleet.topology.groups)),
            "irp": fleet.irp_degree,
            "spread": fleet.spread,
            **{f"{group.roles.letters} instances": group.count for group in fleet.topology.groups},
            **{each.name: getattr(fleet.limits, each.name) for each in fields(fleet.limits)},
            **{f"{role} policy": policy for role, policy in fleet.policies.items()},
            **{f"{role} order": order for role, order in fleet.orders.items()},
        }
    )
    walk(space, knowing)
    return knowing.parameters


def _rank(trial: Trial) -> tuple[bool, float]:
    """A first look flatters, so what got no second one is behind what did."""
    return not trial.score.rough, trial.score.value


def _study(seed: int) -> optuna.Study:
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    sampler = optuna.samplers.TPESampler(seed=seed, n_startup_trials=STARTUP)
    return optuna.create_study(direction="maximize", sampler=sampler)


@dataclass(frozen=True, slots=True)
class _Asking:
    """Answers with what a sampler proposes.

    Where there is an order, it proposes a number from 0 to 1 that says how far along: options differ with what has been
    chosen before, while a sampler learns from one scale.
    """

    trial: optuna.Trial

    def among(self, what: str, options: Sequence[T]) -> T:
        if len(options) == 1:
            return options[0]
        names = [str(option) for option in options]
        return options[names.index(self.trial.suggest_categorical(what, names))]

    def along(self, what: str, options: Sequence[T]) -> T:
        if len(options) == 1:
            return options[0]
        return options[min(int(self.trial.suggest_float(what, 0.0, 1.0) * len(options)), len(options) - 1)]


@dataclass(frozen=True, slots=True)
class _Knowing:
    """Answers with what leads to a known fleet, and keeps the numbers that a sampler would have proposed."""

    answers: dict[str, Any]
    parameters: dict[str, Any] = field(default_factory=dict)

    def among(self, what: str, options: Sequence[T]) -> T:
        answer: T = self.answers[what]
        self.parameters[what] = str(answer)
        return answer

    def along(self, what: str, options: Sequence[T]) -> T:
        answer: T = self.answers[what]
        self.parameters[what] = (options.index(answer) + 0.5) / len(options)
        return answer
