# SPDX-License-Identifier: Apache-2.0
"""Which of several equally able instances serves next; pure functions of their loads."""

from collections.abc import Callable, Mapping, Sequence

from vllm_epd.errors import ConfigError

#: `(outstanding work of each candidate, turn) -> index of the chosen one`. The turn counts up by one from
#: choice to choice of a stage; there is at least one candidate.
Policy = Callable[[Sequence[int], int], int]


def round_robin(outstanding: Sequence[int], turn: int) -> int:
    """One after the other, whatever they have to do."""
    return turn % len(outstanding)


def least_outstanding(outstanding: Sequence[int], turn: int) -> int:
    """The one with the least work in flight; equals take turns."""
    least = min(outstanding)
    equals = [index for index, work in enumerate(outstanding) if work == least]
    return equals[turn % len(equals)]


POLICIES: Mapping[str, Policy] = {"least_outstanding": least_outstanding, "round_robin": round_robin}


def policy_named(name: str) -> Policy:
    """The policy of that name.

    Raises:
        ConfigError: there is none; the message lists those that there are.
    """
    try:
        return POLICIES[name]
    except KeyError:
        raise ConfigError(f"unknown routing policy {name!r}; known: {', '.join(sorted(POLICIES))}") from None
