# SPDX-License-Identifier: Apache-2.0
"""What both ways of measuring have in common: the instances, how fast they are, and what is compared."""

from dataclasses import dataclass

from tests.bench.policies.trace import Arrival

ENCODERS = 3
PREFILLS = 2
#: Tokens per second of one instance, which works at one thing after the other.
ENCODE_RATE = 8_000.0
PREFILL_RATE = 18_000.0
#: Embeddings in the pool of an encoder; prompts at a prefill instance, the one in work included.
POOL_ITEMS = 8
PREFILL_SEQUENCES = 2
#: Blocks of the prefix cache of a prefill instance: room for two of the three beginnings, with some prompts behind.
CACHE_BLOCKS = 48


@dataclass(frozen=True, slots=True)
class Setting:
    """A policy for encode and prefill, and an order of their queues."""

    policy: str
    order: str


SETTINGS = (
    Setting("round_robin", "fcfs"),
    Setting("least_outstanding", "fcfs"),
    Setting("least_loaded", "fcfs"),
    Setting("cache_aware", "fcfs"),
    Setting("least_loaded", "sjf"),
    Setting("least_loaded", "slack"),
    Setting("cache_aware", "sjf"),
    Setting("cache_aware", "slack"),
)


@dataclass(frozen=True, slots=True)
class Outcome:
    """How long each request of a trace waited for its first token, in seconds, in the order of the trace."""

    setting: Setting
    ttfts: tuple[float, ...]

    def quantile(self, part: float) -> float:
        ordered = sorted(self.ttfts)
        return ordered[min(len(ordered) - 1, int(part * len(ordered)))]

    def attained(self, trace: list[Arrival]) -> float:
        """The part of the requests whose first token came in time."""
        return sum(ttft <= each.slo_s for ttft, each in zip(self.ttfts, trace, strict=True)) / len(trace)
