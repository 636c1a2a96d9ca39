# SPDX-License-Identifier: Apache-2.0
"""From samples to the costs of a profile. Pure.

What counts as what:

- prefill: what an engine has a prompt of text for, from scheduling it to its first token;
- encode: the same for an image at an instance that only encodes, elsewhere what it takes beyond its tokens;
- preprocess: what a call with an image takes beyond the engine's time and beyond the same of a call with text;
- decode: the time between tokens while all requests of a round are generated for;
- link: what a prefill takes longer where embeddings are brought, and by how much KV caches of more bytes take longer;
- contention: what steps of two instances take longer at the same time, where they share cores;
- overhead: what is left.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from statistics import median

from msgspec.structs import replace

from vllm_epd.errors import ConfigError
from vllm_epd.planner.measure.beside import beside_s
from vllm_epd.planner.measure.contention import contention
from vllm_epd.planner.measure.links import beside_link_s, reduce_link
from vllm_epd.planner.measure.overhead import call_s, measure_overhead
from vllm_epd.planner.measure.samples import LEAST_S, Measured, Sample, step_s
from vllm_epd.planner.profile.costs import decode_s, prefill_pairs, prefill_s
from vllm_epd.planner.profile.fit import fit_line, relative_fit
from vllm_epd.planner.profile.profile import (
    DecodeCost,
    EncodeCost,
    Fit,
    Link,
    Overhead,
    PrefillCost,
    PreprocessCost,
    Profile,
)
from vllm_epd.types import Role


@dataclass(frozen=True, slots=True)
class Costs:
    """All that is fitted; `link` is None where no stage is apart."""

    preprocess: PreprocessCost
    encode: EncodeCost
    prefill: PrefillCost
    decode: DecodeCost
    overhead: Overhead
    link: Link | None
    fit: dict[str, Fit]


def reduce(measured: Measured, cores: int, whole: Profile | None = None) -> Costs:
    """Fit everything.

    Args:
        measured: all samples.
        cores: of the host.
        whole: a profile where one instance prefills and decodes; its decode counts, and what steps take longer here,
            where decode is apart, is told for itself.

    Raises:
        ConfigError: too little was measured.
    """
    prefill, prefill_fit = reduce_prefill(measured)
    encode, encode_fit = reduce_encode(measured, prefill)
    overhead = measure_overhead(measured)
    preprocess, preprocess_fit = reduce_preprocess(measured, overhead)
    decode, decode_fit = reduce_decode(measured)
    link, link_fit = reduce_link(measured, prefill, decode, overhead)
    if link is not None and measured.shape.decode_apart:
        overhead = replace(overhead, decode_s=beside_link_s(measured, decode, overhead, link))
    if whole is not None:
        overhead = replace(overhead, step_s=added_step_s(measured, whole.decode))
    overhead = replace(
        overhead,
        beside_s=beside_s(measured, preprocess, encode, prefill, decode, overhead),
        contention=contention(measured, prefill, cores),
    )
    fits = {
        "tokens": token_fit(measured),
        "preprocess": preprocess_fit,
        "encode": encode_fit,
        "prefill": prefill_fit,
        "decode": decode_fit,
        "link": link_fit,
    }
    found = {name: fit for name, fit in fits.items() if fit is not None}
    if whole is not None:
        decode, found["decode"] = whole.decode, whole.fit["decode"]
    return Costs(preprocess, encode, prefill, decode, overhead, link, found)


def token_fit(measured: Measured) -> Fit:
    """How well what images are said to become agrees with the prompts that a server counts."""
    images = [sample for sample in measured.samples if sample.series == "image"]
    texts = [sample for sample in measured.samples if sample.series == "text"]
    rows = [(1.0, float(sample.shots[0].words)) for sample in texts]
    line = fit_line(rows, [float(sample.answer.prompt_tokens) for sample in texts])
    template, per_word = line.coefficients
    told = [template + per_word * each.shots[0].words + measured.encoded(each).tokens for each in images]
    return relative_fit(told, [float(each.answer.prompt_tokens) for each in images])


def reduce_prefill(measured: Measured) -> tuple[PrefillCost, Fit]:
    """From prompts of text."""
    points = list(measured.medians("text", lambda sample: sample.meters[Role.PREFILL].prefill_s))
    counts = [sample.answer.prompt_tokens for sample, _ in points]
    rows = [(1.0, tokens, prefill_pairs(tokens, 0)) for tokens in counts]
    line = fit_line(rows, [seconds for _, seconds in points])
    return PrefillCost(*line.coefficients), line.fit


def reduce_encode(measured: Measured, prefill: PrefillCost) -> tuple[EncodeCost, Fit]:
    """From images, one at a time; where prefill is not apart, from several at once too."""

    def seconds(sample: Sample) -> float:
        if measured.shape.encode_apart:
            return sample.meters[Role.ENCODE].prefill_s
        tokens = sample.answer.prompt_tokens
        return sample.meters[Role.PREFILL].prefill_s - prefill_s(prefill, tokens, prefill_pairs(tokens, 0))

    points = list(measured.medians("image", seconds))
    if not measured.shape.encode_apart:
        points += measured.medians("images", seconds)
    rows = [(1.0, float(item.patches), float(item.pairs)) for item in (measured.encoded(each) for each, _ in points)]
    line = fit_line(rows, [max(LEAST_S, each) for _, each in points])
    return EncodeCost(*line.coefficients), line.fit


def reduce_preprocess(measured: Measured, overhead: Overhead) -> tuple[PreprocessCost, Fit]:
    """From what calls with one image take beyond their engine."""
    apart = measured.shape.encode_apart
    usual = overhead.encode_s if apart else overhead.prefill_s

    def seconds(sample: Sample) -> float:
        return call_s(measured.shape, sample, Role.ENCODE if apart else Role.PREFILL) - usual

    points = list(measured.medians("image", seconds))
    rows = [(1.0, float(item.pixels), float(item.patches)) for item in (measured.encoded(each) for each, _ in points)]
    line = fit_line(rows, [max(LEAST_S, each) for _, each in points])
    base, per_pixel, per_patch = line.coefficients
    return PreprocessCost(base_s=base, per_pixel_s=per_pixel, per_patch_s=per_patch), line.fit


def reduce_decode(measured: Measured) -> tuple[DecodeCost, Fit]:
    """From rounds of several requests, while all of them are generated for."""
    points = list(measured.medians("decode", _steps_of(measured)))
    if len(points) < 3:
        raise ConfigError("too few requests were generated for at once to tell what a step of decode takes")
    rows = [(1.0, float(len(sample.shots)), _context(sample)) for sample, _ in points]
    line = fit_line(rows, [step for _, step in points])
    return DecodeCost(*line.coefficients), line.fit


def added_step_s(measured: Measured, whole: DecodeCost) -> float:
    """What steps of one sequence take longer than where one instance prefills and decodes."""
    alone = [
        (sample, step) for sample, step in measured.medians("decode", _steps_of(measured)) if len(sample.shots) == 1
    ]
    return max(0.0, median(step - decode_s(whole, 1, _context(sample)) for sample, step in alone))


def _context(sample: Sample) -> float:
    """Tokens that an average step of a round looks at."""
    generated = len(sample.shots) * sample.shots[0].output_tokens / 2
    return sum(each.prompt_tokens for each in sample.answers) + generated


def _steps_of(measured: Measured) -> Callable[[Sample], float | None]:
    return partial(step_s, apart=measured.shape.decode_apart)
