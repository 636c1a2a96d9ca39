# SPDX-License-Identifier: Apache-2.0
"""What was measured of one front on one case."""

from dataclasses import dataclass

from tests.bench.router.cases import Case
from tests.bench.summary import Summary


@dataclass(frozen=True, slots=True)
class Passed:
    """Requests of one case through one front.

    Attributes:
        seconds: of requests sent one after the other.
        per_s: requests per second of wall time, several at once.
        cpu_s: processor time of the front's process for one of those; None where the stub is asked itself.
    """

    front: str
    case: Case
    seconds: Summary
    per_s: float
    cpu_s: float | None = None
