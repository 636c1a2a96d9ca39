# SPDX-License-Identifier: Apache-2.0
"""What was measured of one prompt length over one way."""

from dataclasses import dataclass

from tests.bench.summary import Summary


@dataclass(frozen=True, slots=True)
class Handover:
    """Hand-overs of prompts of `tokens`.

    Attributes:
        prefill: from the request to P's answer.
        handover: from P's answer, just after its last step, to the first token that D has generated.
    """

    way: str
    tokens: int
    requests: int
    prefill: Summary
    handover: Summary
