# SPDX-License-Identifier: Apache-2.0
"""What requests take beside the work of engines: HTTP, tokenising, scheduling, routing. Pure."""

from collections.abc import Sequence
from statistics import median

from vllm_epd.planner.measure.chat import Shot
from vllm_epd.planner.measure.samples import Measured, Sample, Shape
from vllm_epd.planner.profile.profile import Overhead
from vllm_epd.types import Role


def measure_overhead(measured: Measured) -> Overhead:
    """From requests of text, and processor time from all; what an instance takes over for is told with the link."""
    shape = measured.shape
    text = [sample for sample in measured.samples if sample.series == "text"]
    answering = median(call_s(shape, sample, Role.PREFILL) for sample in text)
    return Overhead(
        router_s=median(_router_s(shape, sample) for sample in text) if shape.routed else 0.0,
        # An API server takes up a call with an image like any other; what more it does is preprocessing.
        encode_s=answering if shape.encode_apart else 0.0,
        prefill_s=answering,
        token_s=_token_s(measured),
    )


def _token_s(measured: Measured) -> float:
    """Processor time of the API server that answers and of the router, for each token.

    Processes count theirs in steps of about 10 ms: only sums over many requests say something. Tokens of one step are
    answered together, so that those of larger batches take less: the median over all batches.
    """
    few = _front(measured, [sample for sample in measured.samples if sample.series == "text"])
    found: dict[tuple[Shot, ...], list[Sample]] = {}
    for sample in measured.samples:
        if sample.series == "decode":
            found.setdefault(sample.shots, []).append(sample)
    slopes = [(many[0] - few[0]) / (many[1] - few[1]) for many in (_front(measured, same) for same in found.values())]
    return max(0.0, median(slopes))


def _front(measured: Measured, samples: Sequence[Sample]) -> tuple[float, float]:
    """Processor time and tokens of a request, on average."""
    requests = sum(len(sample.shots) for sample in samples)
    seconds = sum(sample.meters[Role.DECODE].front_s + sample.router_s for sample in samples)
    return seconds / requests, sum(sample.meters[Role.DECODE].tokens for sample in samples) / requests


def call_s(shape: Shape, sample: Sample, role: Role) -> float:
    """What the call of a stage takes until its first token, beyond the time of its engine.

    Without a router it is the client that waits.
    """
    meters = sample.meters[role]
    if not shape.routed:
        return max(0.0, sample.answer.ttft_s - meters.queue_s - meters.prefill_s)
    if role is Role.ENCODE and shape.encode_apart:
        return max(0.0, sample.span(role) - meters.engine_s)
    return max(0.0, sample.span(shape.first_token_from) - meters.queue_s - meters.prefill_s)


def _router_s(shape: Shape, sample: Sample) -> float:
    """What a router takes for each stage that is asked."""
    asked = [role for role in Role if sample.span(role)]
    total = sample.answer.spans.get("total", sample.answer.ttft_s)
    return max(0.0, total - sum(sample.span(role) for role in asked)) / max(1, len(asked))
