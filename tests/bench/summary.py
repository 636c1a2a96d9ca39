# SPDX-License-Identifier: Apache-2.0
"""Many durations in few numbers."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, slots=True)
class Summary:
    """Seconds of several requests."""

    p50: float
    p95: float
    p99: float
    mean: float

    @classmethod
    def of(cls, seconds: Sequence[float]) -> "Summary":
        p50, p95, p99 = np.percentile(seconds, (50, 95, 99))
        return cls(float(p50), float(p95), float(p99), float(np.mean(seconds)))
