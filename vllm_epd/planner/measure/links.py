# SPDX-License-Identifier: Apache-2.0
"""What it takes to bring embeddings and KV caches to the next instance. Pure.

Embeddings are small, so that the time for them is mostly latency: of agents, of the scheduler that looks whether they
are there, and of what a prompt with metadata takes more than one of text. KV caches are large, and show the rate.
"""

from statistics import median

from vllm_epd.planner.measure.samples import LEAST_S, Measured, Sample
from vllm_epd.planner.profile.costs import decode_steps_s, prefill_pairs, prefill_s, transfer_s
from vllm_epd.planner.profile.fit import fit_line, relative_fit
from vllm_epd.planner.profile.profile import DecodeCost, Fit, Link, Overhead, PrefillCost

FASTEST = 1e12
"""Bytes a second, where none is seen."""


def reduce_link(
    measured: Measured, prefill: PrefillCost, decode: DecodeCost, overhead: Overhead
) -> tuple[Link | None, Fit | None]:
    """From what is brought to prefill and to decode, as far as these are apart; None where nothing is."""
    embeddings = _embeddings(measured, prefill, overhead) if measured.shape.encode_apart else []
    caches = _caches(measured, decode, overhead) if measured.shape.decode_apart else []
    points = embeddings or caches
    if not points:
        return None, None
    line = fit_line([(1.0, nbytes) for nbytes, _ in caches or embeddings], [each for _, each in caches or embeddings])
    rate = min(FASTEST, 1 / line.coefficients[1]) if line.coefficients[1] else FASTEST
    link = Link(latency_s=max(0.0, median(seconds - nbytes / rate for nbytes, seconds in points)), bytes_per_s=rate)
    told = [transfer_s(link, nbytes) for nbytes, _ in points]
    return link, relative_fit(told, [seconds for _, seconds in points])


def beside_link_s(measured: Measured, decode: DecodeCost, overhead: Overhead, link: Link) -> float:
    """What an instance takes over for beyond what its link takes."""
    caches = _caches(measured, decode, overhead)
    return max(0.0, median(seconds - transfer_s(link, nbytes) for nbytes, seconds in caches))


def _embeddings(measured: Measured, prefill: PrefillCost, overhead: Overhead) -> list[tuple[float, float]]:
    """Bytes, and what a call takes beyond that of as much text."""

    def seconds(sample: Sample) -> float:
        tokens = sample.answer.prompt_tokens
        called = sample.span(measured.shape.first_token_from) if measured.shape.routed else sample.answer.ttft_s
        return max(LEAST_S, called - overhead.prefill_s - prefill_s(prefill, tokens, prefill_pairs(tokens, 0)))

    return [
        (float(measured.embedding_bytes * measured.encoded(sample).tokens), each)
        for sample, each in measured.medians("image", seconds)
    ]


def _caches(measured: Measured, decode: DecodeCost, overhead: Overhead) -> list[tuple[float, float]]:
    """Bytes, and what goes by between the first and the last token beyond steps and router."""

    def seconds(sample: Sample) -> float:
        steps = sample.shots[0].output_tokens - 1
        generated = decode_steps_s(decode, 1, sample.answer.prompt_tokens, steps)
        return max(LEAST_S, sample.answer.total_s - sample.answer.ttft_s - generated - overhead.router_s)

    return [
        (float(measured.kv_bytes * sample.answer.prompt_tokens), each)
        for series in ("text", "image")
        for sample, each in measured.medians(series, seconds)
    ]
