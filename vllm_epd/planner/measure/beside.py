# SPDX-License-Identifier: Apache-2.0
"""What a fleet's processes do beside what requests wait for. Pure."""

from statistics import fmean

from vllm_epd.planner.measure.samples import Measured, Sample
from vllm_epd.planner.profile.costs import decode_steps_s, encode_s, prefill_pairs, prefill_s
from vllm_epd.planner.profile.profile import DecodeCost, EncodeCost, Overhead, PrefillCost, PreprocessCost


def beside_s(
    measured: Measured,
    preprocess: PreprocessCost,
    encode: EncodeCost,
    prefill: PrefillCost,
    decode: DecodeCost,
    overhead: Overhead,
) -> float:
    """Processor time of all processes beyond what the costs tell, for each stage that is asked; 0 if it is not known.

    From requests of text and of one image, on average: processes count theirs in steps of about 10 ms.
    """

    def rest(sample: Sample) -> float:
        shape, item, tokens = measured.shape, measured.encoded(sample), sample.answer.prompt_tokens
        output = sample.shots[0].output_tokens
        told = prefill_s(prefill, tokens, prefill_pairs(tokens, 0)) + decode_steps_s(decode, 1, tokens, output - 1)
        told += overhead.prefill_s + overhead.router_s + overhead.token_s * output
        asked = 1
        if shape.decode_apart:
            told += overhead.decode_s + overhead.router_s
            asked += 1
        if item.patches:
            told += encode_s(encode, item.patches, item.pairs) + preprocess.base_s
            told += preprocess.per_pixel_s * item.pixels + preprocess.per_patch_s * item.patches
        if item.patches and shape.encode_apart:
            told += overhead.encode_s + overhead.router_s
            asked += 1
        assert sample.all_s is not None
        return (sample.all_s - told) / asked

    known = [each for each in measured.samples if each.series in ("text", "image") and each.all_s is not None]
    return max(0.0, fmean(rest(sample) for sample in known)) if known else 0.0
