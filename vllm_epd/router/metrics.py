# SPDX-License-Identifier: Apache-2.0
"""What the router counts, for Prometheus. Labels take few values: none of them is a client's to choose."""

from collections.abc import Iterable, Mapping
from functools import cache

from prometheus_client import CollectorRegistry, Counter, Gauge, ProcessCollector, generate_latest

from vllm_epd.router.distribution import Distribution, Distributions
from vllm_epd.router.instances import Instance
from vllm_epd.router.record import Record
from vllm_epd.router.timeline import QUEUE, Span
from vllm_epd.types import Role

_PREFIX = "vllm_epd_router_"
_STAGE_S = (0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0)
# vLLM's own buckets for the same names.
_TTFT_S = (0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0, 160.0)
_E2E_S = (0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0, 120.0, 240.0, 480.0, 960.0)
_TPOT_S = (0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0)
_SHARES = (0.01, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.8, 1.0, 1.5, 2.0, 5.0, 10.0)

_TTFT = "ttft"


class Metrics:
    """The numbers of one router; each has its own collection, so that several may share a process."""

    def __init__(self) -> None:
        self._collected = CollectorRegistry()
        ProcessCollector(registry=self._collected)
        self._answers = cache(self._counter("requests", "Requests answered.", "route", "status").labels)
        self._failed = self._counter(
            "failed_requests",
            "Requests for an answer that were refused or failed, by the name of the error; QueueFullError, TooLateError"
            " and NoInstanceError are refusals of the router. A stream that failed has status 200 in `requests`.",
            "reason",
        )
        self._in_flight = self._gauge("in_flight", "Requests being served.")
        self._ttft = self._histogram(
            "time_to_first_token_seconds",
            "Time from the arrival of a request to the first event of its stream; whole answers are not counted.",
            _TTFT_S,
        ).labelled()
        self._e2e = self._histogram(
            "e2e_request_latency_seconds",
            "Time from the arrival of a request to the end of its answer, of those that were answered in full.",
            _E2E_S,
        ).labelled()
        self._tpot = self._histogram(
            "request_time_per_output_token_seconds",
            "Mean time of a token after the first, for each stream whose tokens the router follows: those that another"
            " instance could go on with.",
            _TPOT_S,
        ).labelled()
        self._spans = self._span_histograms()
        self._attained = self._counter(
            "slo_requests",
            "Streams with a target, by whether they met it. For ttft: those whose first token came in time, against"
            " those where it came late, or never because the request was refused (429, 503) or failed, or the client"
            " left after the target was over.",
            "slo",
            "attained",
        )
        shares = self._histogram(
            "slo_stage_share",
            "How much of its target for the first token a stream spent in each part of its way, 1 being all of it."
            " The average is sum over count; the part with the largest one is where more capacity helps most.",
            _SHARES,
            "slo",
            "stage",
        )
        self._shares = {span: shares.labelled(_TTFT, span) for span in Span}
        self._misses = self._counter(
            "slo_misses",
            "Streams that missed their target for the first token, by the part of their way that took most of their"
            " time until then; `failed` stands for those that never began.",
            "slo",
            "stage",
        )
        self._instances = self._gauge("instances", "Instances that may be given work.", "role")
        self._outstanding = self._gauge("outstanding", "Calls an instance has not answered.", "instance")
        self._out_of_service = self._gauge(
            "out_of_service",
            "1 for an instance that is registered and gets no work: its connections are refused (unreachable), or calls"
            " to it failed in a row (breaker).",
            "instance",
            "reason",
        )
        self._parted = self._gauge("parted_pairs", "Pairs of P and D that get no work together, as they fail together.")
        embeddings = self._counter(
            "embeddings",
            "Distinct media parts of requests or shards of them, by where their embedding came from.",
            "source",
        )
        self._encoded, self._reused = embeddings.labels("encoded"), embeddings.labels("reused")
        self._prefix_queries = self._counter(
            "prefix_cache_queries",
            "Tokens of prompts, as estimated, that were looked for among what the prefill instances have had."
            " Only the policy cache_aware looks.",
        )
        self._prefix_hits = self._counter(
            "prefix_cache_hits", "Those of them that the prefill instance has had to which the prompt was sent."
        )
        self._first_tokens = self._counter(
            "first_tokens",
            "First tokens of prompts prefilled for another instance over our own connector, by who sampled them.",
            "source",
        )
        self._retries = self._counter(
            "retries", "Requests that started over after an instance failed at them, by the stage that failed.", "stage"
        )
        self._waiting = self._gauge("waiting", "Requests that wait for room at a stage.", "stage")
        self._pool_held = self._gauge(
            "pool_held_bytes",
            "Bytes that requests hold of an encode instance's pool, embeddings in the making included.",
            "instance",
        )

    def came(self) -> None:
        """Count a request as one that is being served, until it `went`."""
        self._in_flight.inc()

    def went(self) -> None:
        """One is not any more."""
        self._in_flight.dec()

    def answered(self, route: str, status: int) -> None:
        """Count an answer; 499 stands for a client that went away."""
        self._answers(route, status).inc()

    def begun(self, record: Record) -> None:
        """Count a stream whose first event is about to go out."""
        timeline, target_s = record.timeline, record.target_s
        ttft_s = timeline.ttft_s
        if ttft_s is None:
            raise RuntimeError("the answer has not begun")
        self._ttft.observe(ttft_s)
        if target_s is None:
            return
        seconds = timeline.seconds()
        for span, spent in seconds.items():
            self._shares[span].observe(spent / target_s)
        self._attain(ttft_s <= target_s, max(seconds, key=seconds.__getitem__))

    def ended(self, record: Record, status: int) -> None:
        """Count a request that is over, however it ended."""
        for span, spent in record.timeline.seconds().items():
            self._spans[span].observe(spent)
        if record.reason is not None:
            self._failed.labels(record.reason).inc()
        elif status == 200:
            self._e2e.observe(record.timeline.total_s())
            if (tpot_s := record.time_per_token_s()) is not None:
                self._tpot.observe(tpot_s)
        if record.missed_without_answer(status):
            self._attain(False, "failed")

    def encoded(self) -> None:
        """Count a media part that was encoded."""
        self._encoded.inc()

    def reused(self) -> None:
        """Count a media part whose embedding an instance still held."""
        self._reused.inc()

    def sent_prompt(self, tokens: int, seen: int) -> None:
        """Count a prompt of so many tokens that goes to an instance which has seen some of them."""
        self._prefix_queries.inc(tokens)
        self._prefix_hits.inc(seen)

    def first_token(self, source: Role) -> None:
        """Count a prompt by who samples the first token that its client sees."""
        self._first_tokens.labels(source.value).inc()

    def retried(self, stage: str) -> None:
        """Count a request that starts over after a stage failed."""
        self._retries.labels(stage).inc()

    def render(self, listed: Iterable[Instance], waiting: Mapping[Role, int], parted: int) -> bytes:
        """All numbers in Prometheus' text format, those of other parts of the router as they are now.

        Args:
            listed: the instances that live, suspended ones too.
            waiting: how many requests wait for each stage.
            parted: how many pairs of instances get no work together.
        """
        self._parted.set(parted)
        for stage, count in waiting.items():
            self._waiting.labels(stage.value).set(count)
        self._show_instances(list(listed))
        return generate_latest(self._collected)

    def _attain(self, attained: bool, costliest: str) -> None:
        self._attained.labels(_TTFT, str(attained).lower()).inc()
        if not attained:
            self._misses.labels(_TTFT, costliest).inc()

    def _show_instances(self, listed: list[Instance]) -> None:
        present = [each for each in listed if not each.suspended]
        for role in Role:
            self._instances.labels(role.value).set(sum(role in each.info.roles for each in present))
        for gauge in (self._outstanding, self._pool_held, self._out_of_service):
            gauge.clear()
        for each in present:
            self._outstanding.labels(each.name).set(each.outstanding)
            if each.info.roles.encode:
                self._pool_held.labels(each.name).set(each.pool.used)
        for each in listed:
            if each.suspended:
                self._out_of_service.labels(each.name, "unreachable").set(1)
            elif not each.breaker.allows:
                self._out_of_service.labels(each.name, "breaker").set(1)

    def _span_histograms(self) -> Mapping[Span, Distribution]:
        """Where the time in each span is counted."""
        spent = self._histogram(
            "stage_seconds",
            "Time that a request spent in a stage without waiting for room there, all its tries together, at its end."
            " decode includes prefill where one instance does both.",
            _STAGE_S,
            "stage",
        )
        waited = self._histogram(
            "waited_seconds",
            "Time that a request waited for room at a stage, those included that did not have to.",
            _STAGE_S,
            "stage",
        )
        queues = {span: waited.labelled(stage.value) for stage, span in QUEUE.items()}
        return {span: queues.get(span) or spent.labelled(span) for span in Span}

    def _counter(self, name: str, help_text: str, *labels: str) -> Counter:
        return Counter(_PREFIX + name, help_text, labels, registry=self._collected)

    def _gauge(self, name: str, help_text: str, *labels: str) -> Gauge:
        return Gauge(_PREFIX + name, help_text, labels, registry=self._collected)

    def _histogram(self, name: str, help_text: str, buckets: tuple[float, ...], *labels: str) -> Distributions:
        found = Distributions(_PREFIX + name, help_text, buckets, labels)
        self._collected.register(found)
        return found
