# SPDX-License-Identifier: Apache-2.0
"""What the router counts, for Prometheus."""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from time import perf_counter

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from vllm_epd.router.instances import Instance
from vllm_epd.types import Role

_PREFIX = "vllm_epd_router_"
_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0)


class Metrics:
    """The numbers of one router; each has its own collection, so that several may share a process."""

    def __init__(self) -> None:
        self._collected = CollectorRegistry()
        self._requests = Counter(
            f"{_PREFIX}requests", "Requests answered.", ["route", "status"], registry=self._collected
        )
        self._in_flight = Gauge(f"{_PREFIX}in_flight", "Requests being served.", registry=self._collected)
        self._stages = Histogram(
            f"{_PREFIX}stage_seconds",
            "Time that requests spent in a stage, failed ones too.",
            ["stage"],
            buckets=_BUCKETS,
            registry=self._collected,
        )
        self._stage_named: dict[str, Histogram] = {}
        self._instances = Gauge(
            f"{_PREFIX}instances", "Instances that may be given work.", ["role"], registry=self._collected
        )
        self._outstanding = Gauge(
            f"{_PREFIX}outstanding",
            "Calls an instance has not answered.",
            ["instance"],
            registry=self._collected,
        )
        self._embeddings = Counter(
            f"{_PREFIX}embeddings",
            "Distinct media parts of requests, or their shards, by where their embedding came from.",
            ["source"],
            registry=self._collected,
        )
        self._first_tokens = Counter(
            f"{_PREFIX}first_tokens",
            "First tokens of prompts prefilled for another instance over our own connector, by who sampled them.",
            ["source"],
            registry=self._collected,
        )
        self._retries = Counter(
            f"{_PREFIX}retries",
            "Requests that started over after an instance failed at them, by the stage that failed.",
            ["stage"],
            registry=self._collected,
        )
        self._waiting = Gauge(
            f"{_PREFIX}waiting", "Requests that wait for room at a stage.", ["stage"], registry=self._collected
        )
        self._waited = Histogram(
            f"{_PREFIX}waited_seconds",
            "Time that requests waited for room at a stage, those included that did not have to.",
            ["stage"],
            buckets=_BUCKETS,
            registry=self._collected,
        )
        self._pool_held = Gauge(
            f"{_PREFIX}pool_held_bytes",
            "Bytes that requests hold of an encode instance's pool, embeddings in the making included.",
            ["instance"],
            registry=self._collected,
        )

    @contextmanager
    def in_flight(self) -> Iterator[None]:
        """Count one request for the length of a `with` block."""
        with self._in_flight.track_inprogress():
            yield

    def answered(self, route: str, status: int) -> None:
        """Count an answer; 499 stands for a client that went away."""
        self._requests.labels(route, str(status)).inc()

    def encoded(self) -> None:
        """Count a media part that was encoded."""
        self._embeddings.labels("encoded").inc()

    def reused(self) -> None:
        """Count a media part whose embedding an instance still held."""
        self._embeddings.labels("reused").inc()

    def first_token(self, source: Role) -> None:
        """Count a prompt by who samples the first token that its client sees."""
        self._first_tokens.labels(source.value).inc()

    def retried(self, stage: str) -> None:
        """Count a request that starts over after a stage failed."""
        self._retries.labels(stage).inc()

    def waited(self, stage: Role, seconds: float) -> None:
        """Count a request that has got a place at a stage."""
        self._waited.labels(stage.value).observe(seconds)

    def stage(self, name: str) -> AbstractContextManager[None]:
        """Measure a `with` block as time spent in a stage."""
        stage = self._stage_named.get(name)
        if stage is None:
            stage = self._stage_named[name] = self._stages.labels(name)
        return _Timed(stage)

    def render(self, available: Iterable[Instance], waiting: Mapping[Role, int]) -> bytes:
        """All numbers in Prometheus' text format, those of other parts of the router as they are now."""
        present = list(available)
        for role in Role:
            self._instances.labels(role.value).set(sum(role in each.info.roles for each in present))
        for stage, count in waiting.items():
            self._waiting.labels(stage.value).set(count)
        self._outstanding.clear()
        self._pool_held.clear()
        for each in present:
            self._outstanding.labels(each.name).set(each.outstanding)
            if each.info.roles.encode:
                self._pool_held.labels(each.name).set(each.pool.used)
        return generate_latest(self._collected)


class _Timed(AbstractContextManager[None]):
    __slots__ = ("_begun", "_stage")

    def __init__(self, stage: Histogram) -> None:
        self._stage = stage

    def __enter__(self) -> None:
        self._begun = perf_counter()

    def __exit__(self, *_: object) -> None:
        self._stage.observe(perf_counter() - self._begun)
