# SPDX-License-Identifier: Apache-2.0
"""What was measured of one size over one variant."""

from dataclasses import dataclass

from tests.bench.summary import Summary


@dataclass(frozen=True, slots=True)
class Transfer:
    """Reads of `nbytes` by one variant."""

    variant: str
    nbytes: int
    reads: int
    seconds: Summary

    @property
    def bytes_per_s(self) -> float:
        """By the median."""
        return self.nbytes / self.seconds.p50
