# SPDX-License-Identifier: Apache-2.0
"""Which of several equally able instances serves next; pure functions of their loads."""

from collections.abc import Callable, Mapping, Sequence

from msgspec import Struct

from vllm_epd.router.named import named
from vllm_epd.types import Role


class Load(Struct, frozen=True):
    """What an instance has to do already.

    Attributes:
        outstanding: calls that it has not answered yet.
        work: what these are estimated at, in tokens.
        holds: how much of what is to be done it need not do again, in tokens.
    """

    outstanding: int
    work: float = 0.0
    holds: float = 0.0


#: `(load of each candidate, turn) -> index of the chosen one`. The turn counts up by one from choice to choice of
#: a stage; there is at least one candidate.
Policy = Callable[[Sequence[Load], int], int]

#: How many times the work of the least loaded candidate one that holds something may have, beside what it holds.
FAR_MORE = 2.0


def round_robin(loads: Sequence[Load], turn: int) -> int:
    """One after the other, whatever they have to do."""
    return turn % len(loads)


def least_outstanding(loads: Sequence[Load], turn: int) -> int:
    """The one with the fewest calls in flight; equals take turns."""
    return _least([(load.outstanding,) for load in loads], turn)


def least_loaded(loads: Sequence[Load], turn: int) -> int:
    """The one with the least work in flight; of equals that with the fewest calls, and then they take turns."""
    return _least([(load.work, load.outstanding) for load in loads], turn)


def cache_aware(loads: Sequence[Load], turn: int) -> int:
    """The one that holds most of what is needed; of equals the least loaded one.

    One that is loaded far more than the least loaded candidate is left out: its queue would take longer than what it
    spares.
    """
    bearable = FAR_MORE * min(load.work for load in loads)
    keys = [(-load.holds if load.work <= bearable + load.holds else 0.0, load.work, load.outstanding) for load in loads]
    return _least(keys, turn)


POLICIES: Mapping[str, Policy] = {
    "cache_aware": cache_aware,
    "least_loaded": least_loaded,
    "least_outstanding": least_outstanding,
    "round_robin": round_robin,
}

#: What is used where nothing else is asked for. The work of a decoder is not known beforehand.
DEFAULTS: Mapping[Role, str] = {
    Role.ENCODE: "least_loaded",
    Role.PREFILL: "least_loaded",
    Role.DECODE: "least_outstanding",
}


def policy_named(name: str) -> Policy:
    """The policy of that name.

    Raises:
        ConfigError: there is none; the message lists those that there are.
    """
    return named("routing policy", POLICIES, name)


def _least(keys: Sequence[tuple[float, ...]], turn: int) -> int:
    least = min(keys)
    equals = [index for index, key in enumerate(keys) if key == least]
    return equals[turn % len(equals)]
