# SPDX-License-Identifier: Apache-2.0
"""What the settings of a workload must be. Pure.

All raise ValueError, of which msgspec makes an error that names the place in the file.
"""

import math
import re
from collections.abc import Sequence

_SIZE = re.compile(r"(\d+)x(\d+)")


def check(holds: bool, message: str) -> None:
    """Refuse what does not hold."""
    if not holds:
        raise ValueError(message)


def parse_size(text: str) -> tuple[int, int]:
    """Width and height of `4032x3024`."""
    found = _SIZE.fullmatch(text)
    check(found is not None and min(int(found[1]), int(found[2])) > 0, f"expected WIDTHxHEIGHT, got {text!r}")
    assert found is not None
    return int(found[1]), int(found[2])


def check_positive(name: str, number: float) -> None:
    """Refuse what is not above zero, or without end."""
    check(0 < number < math.inf, f"expected a {name} above 0, got {number}")


def check_weights(weights: Sequence[float], count: int) -> None:
    """Refuse weights that are not one for each of `count` things, or not all above zero."""
    good = len(weights) == count and all(0 < each < math.inf for each in weights)
    check(good, f"expected {count} weights above 0, got {list(weights)}")


def check_rate(rate: float) -> None:
    """Refuse what is no rate."""
    check(math.isfinite(rate) and rate > 0, f"expected a rate above 0 requests per second, got {rate}")
