# SPDX-License-Identifier: Apache-2.0
"""What it takes to bring embeddings and KV caches to the next instance. Pure.

Embeddings are small, so that the time for them is mostly latency: of agents, of the scheduler that looks whether they
are there, and of what a prompt with metadata takes more than one of text. KV caches are large, and show the rate.
"""

from statistics import median
from typing import NamedTuple

from vllm_epd.planner.measure.samples import LEAST_S, Measured, Sample
from vllm_epd.planner.profile.costs import decode_steps_s, prefill_pairs, prefill_s, transfer_s
from vllm_epd.planner.profile.fit import fit_line, relative_fit
from vllm_epd.planner.profile.profile import DecodeCost, Fit, Link, Overhead, PrefillCost

FASTEST = 1e12
"""Bytes a second, where none is seen."""


class Brought(NamedTuple):
    """What one kind of request shows of a link.

    Attributes:
        nbytes: what is brought for it.
        seconds: what that takes.
        beside: what else goes by where it was measured, in seconds, by the other costs.
    """

    nbytes: float
    seconds: float
    beside: float


def reduce_link(
    measured: Measured, prefill: PrefillCost, decode: DecodeCost, overhead: Overhead
) -> tuple[Link | None, Fit | None]:
    """From what is brought to prefill and to decode, as far as these are apart; None where nothing is.

    What a link takes is a small rest of what is measured, so the errors are relative to all of that.
    """
    embeddings = _embeddings(measured, prefill, overhead) if measured.shape.encode_apart else []
    caches = _caches(measured, decode, overhead) if measured.shape.decode_apart else []
    points = embeddings or caches
    if not points:
        return None, None
    sloped = caches or embeddings
    line = fit_line([(1.0, each.nbytes) for each in sloped], [each.seconds for each in sloped])
    rate = min(FASTEST, 1 / line.coefficients[1]) if line.coefficients[1] else FASTEST
    link = Link(latency_s=max(0.0, median(each.seconds - each.nbytes / rate for each in points)), bytes_per_s=rate)
    told = [transfer_s(link, each.nbytes) + each.beside for each in points]
    return link, relative_fit(told, [each.seconds + each.beside for each in points])


def beside_link_s(measured: Measured, decode: DecodeCost, overhead: Overhead, link: Link) -> float:
    """What an instance takes over for beyond what its link takes."""
    caches = _caches(measured, decode, overhead)
    return max(0.0, median(each.seconds - transfer_s(link, each.nbytes) for each in caches))


def _embeddings(measured: Measured, prefill: PrefillCost, overhead: Overhead) -> list[Brought]:
    """What a call takes beyond that of as much text."""

    def beside(sample: Sample) -> float:
        tokens = sample.answer.prompt_tokens
        return overhead.prefill_s + prefill_s(prefill, tokens, prefill_pairs(tokens, 0))

    def seconds(sample: Sample) -> float:
        called = sample.span(measured.shape.first_token_from) if measured.shape.routed else sample.answer.ttft_s
        return called - beside(sample)

    return [
        Brought(float(measured.embedding_bytes * measured.encoded(sample).tokens), max(LEAST_S, each), beside(sample))
        for sample, each in measured.medians("image", seconds)
    ]


def _caches(measured: Measured, decode: DecodeCost, overhead: Overhead) -> list[Brought]:
    """What goes by between the first and the last token beyond steps and router."""

    def beside(sample: Sample) -> float:
        steps = sample.shots[0].output_tokens - 1
        return decode_steps_s(decode, 1, sample.answer.prompt_tokens, steps) + overhead.router_s

    def seconds(sample: Sample) -> float:
        return sample.answer.total_s - sample.answer.ttft_s - beside(sample)

    return [
        Brought(float(measured.kv_bytes * sample.answer.prompt_tokens), max(LEAST_S, each), beside(sample))
        for series in ("text", "image")
        for sample, each in measured.medians(series, seconds)
    ]
