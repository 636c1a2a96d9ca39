# SPDX-License-Identifier: Apache-2.0
"""What instances count about themselves: vLLM's own metrics, and the processor time of their API servers."""

from collections.abc import Iterable
from dataclasses import dataclass, fields, replace

import aiohttp
from prometheus_client.parser import text_string_to_metric_families

from vllm_epd.errors import ConfigError

NAMES = {
    "finished": "vllm:e2e_request_latency_seconds_count",
    "whole_s": "vllm:e2e_request_latency_seconds_sum",
    "queue_s": "vllm:request_queue_time_seconds_sum",
    "prefill_s": "vllm:request_prefill_time_seconds_sum",
    "decode_s": "vllm:request_decode_time_seconds_sum",
    "tokens": "vllm:generation_tokens_total",
    "front_s": "process_cpu_seconds_total",
}


@dataclass(frozen=True, slots=True)
class Meters:
    """Sums over all requests since an instance started, or over those in between two readings.

    Attributes:
        finished: requests.
        whole_s: from when its API server took them up until they were done.
        queue_s: until its engine first scheduled them.
        prefill_s: from then to the first token.
        decode_s: from then to the last one.
        tokens: generated.
        front_s: of processor time of its API server, which fetches, preprocesses and answers.
    """

    finished: float = 0.0
    whole_s: float = 0.0
    queue_s: float = 0.0
    prefill_s: float = 0.0
    decode_s: float = 0.0
    tokens: float = 0.0
    front_s: float = 0.0

    def __sub__(self, before: "Meters") -> "Meters":
        return Meters(*(getattr(self, each.name) - getattr(before, each.name) for each in fields(self)))

    def without_readings(self, readings: int, reading_s: float) -> "Meters":
        """The same without the processor time of so many readings."""
        return replace(self, front_s=self.front_s - readings * reading_s)

    @property
    def engine_s(self) -> float:
        """What its engine had the requests for."""
        return self.queue_s + self.prefill_s + self.decode_s


def parse_meters(text: str) -> Meters:
    """Read the answer of `/metrics`; what is missing counts as 0, as before the first request."""
    found: dict[str, float] = {}
    wanted = {name: key for key, name in NAMES.items()}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            if key := wanted.get(sample.name):
                found[key] = found.get(key, 0.0) + sample.value
    return Meters(**found)


async def read_meters(session: aiohttp.ClientSession, urls: Iterable[str]) -> dict[str, Meters]:
    """Ask those at these base URLs.

    Raises:
        ConfigError: one of them does not answer.
    """
    return {url: parse_meters(await _text(session, f"{url}/metrics")) for url in urls}


async def _text(session: aiohttp.ClientSession, url: str) -> str:
    try:
        async with session.get(url) as response:
            response.raise_for_status()
            return await response.text()
    except (aiohttp.ClientError, TimeoutError) as error:
        raise ConfigError(
            f"no metrics from {url}: {error!r}; they are needed to tell stages apart, and must be reached from here"
        ) from error
