# SPDX-License-Identifier: Apache-2.0
"""The lowest number of GPUs that is enough, by halves: more GPUs never serve less."""

import math
from collections.abc import Callable

from vllm_epd.planner.search.search import Trial


def fewest(least: int, most: int, attempt: Callable[[int], list[Trial]]) -> list[Trial]:
    """What `attempt` finds with the lowest number of GPUs with which it finds something.

    Args:
        least: GPUs that may be enough.
        most: GPUs that there are.
        attempt: looks for fleets of so many GPUs; the first one keeps what is promised, or none does.

    Returns:
        What was found there; with `most` GPUs, if that is not enough.
    """
    found = attempt(most)
    if found[0].score.rate == 0:
        return found
    while least < most:
        middle = (least + most) // 2
        trials = attempt(middle)
        if trials and trials[0].score.rate > 0:
            found, most = trials, middle
        else:
            least = middle + 1
    return found


def attempts(least: int, most: int) -> int:
    """How often `fewest` looks at most."""
    return 1 + math.ceil(math.log2(max(1, most - least + 1)))
