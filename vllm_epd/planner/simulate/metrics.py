# SPDX-License-Identifier: Apache-2.0
"""What an outcome says about a fleet. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil

from vllm_epd.errors import ConfigError
from vllm_epd.planner.simulate.outcome import Outcome


@dataclass(frozen=True, slots=True)
class Spread:
    """Seconds of many requests.

    Attributes:
        mean: of all.
        p50: half of them took at most so long.
        p90: nine of ten did.
        p99: 99 of a hundred did.
    """

    mean: float
    p50: float
    p90: float
    p99: float

    @classmethod
    def of(cls, seconds: Sequence[float]) -> "Spread":
        """Of at least one request; a percentile is the time of a request (nearest rank)."""
        ordered = sorted(seconds)
        p50, p90, p99 = (ordered[max(0, ceil(share * len(ordered)) - 1)] for share in (0.5, 0.9, 0.99))
        return cls(sum(ordered) / len(ordered), p50, p90, p99)


@dataclass(frozen=True, slots=True)
class Summary:
    """An outcome in numbers.

    Attributes:
        served: requests.
        refused: requests that no instance could ever take.
        ttft: time to first token.
        tpot: mean time of a token after the first, of requests with more than one.
        e2e: time of whole answers.
        requests_per_s: throughput, from the first arrival to the end.
        tokens_per_s: of output.
        device_s: what one request costs: seconds of all devices, busy or not, over the requests served.
        use: part of the time in which each instance's device worked, by name.
    """

    served: int
    refused: int
    ttft: Spread
    tpot: Spread
    e2e: Spread
    requests_per_s: float
    tokens_per_s: float
    device_s: float
    use: dict[str, float]


def summarize(outcome: Outcome) -> Summary:
    """The numbers of an outcome.

    Raises:
        ConfigError: nothing was served; the first reason is named.
    """
    served = outcome.served
    if not served:
        why = outcome.refused[0].why if outcome.refused else "there are no requests"
        raise ConfigError(f"the fleet serves none of {len(outcome.refused)} requests: {why}")
    span = outcome.end - min(each.arrived for each in served)
    generating = [each.tpot_s for each in served if each.output_tokens > 1]
    return Summary(
        served=len(served),
        refused=len(outcome.refused),
        ttft=Spread.of([each.ttft_s for each in served]),
        tpot=Spread.of(generating or [0.0]),
        e2e=Spread.of([each.done - each.arrived for each in served]),
        requests_per_s=len(served) / span,
        tokens_per_s=sum(each.output_tokens for each in served) / span,
        device_s=len(outcome.uses) * span / len(served),
        use={each.name: each.busy_s / span for each in outcome.uses},
    )
