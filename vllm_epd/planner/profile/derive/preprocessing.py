# SPDX-License-Identifier: Apache-2.0
"""What preprocessing costs a core: measured, as no data sheet says it. Pure.

By `python -m tests.bench.preprocess` on one core of an AMD EPYC of family 26 (Zen 5), with Pillow 13.0, numpy 2.3 and
torch 2.13 in one thread, for pictures of 313x234 to 4032x3024 pixels in JPEG of 0.4 bytes a pixel. For 4032x3024,
decoding took 77 ms and the rest 150 ms (MiniCPM-V 2.6), 138 ms (InternVL2) and 274 ms (Qwen2.5-VL). Errors of the fits,
mean and worst: 9 and 33 %, 1 and 2 %, 2 and 4 %, 21 and 55 %. Cores of older hosts take longer.
"""

from vllm_epd.planner.profile.profile import PreprocessCost

DECODING = PreprocessCost(base_s=8.82e-06, per_pixel_s=4.24e-09, per_patch_s=0.0)

SLICES = PreprocessCost(base_s=7.35e-05, per_pixel_s=9.60e-09, per_patch_s=3.30e-06)
"""MiniCPM-V 2.6: bicubic overview and slices, normalised and cut into patches."""

TILES = PreprocessCost(base_s=3.85e-04, per_pixel_s=9.61e-09, per_patch_s=1.85e-06)
"""InternVL2: bicubic thumbnail and tiles, normalised."""

WHOLE = PreprocessCost(base_s=0.0, per_pixel_s=9.93e-09, per_patch_s=2.22e-07)
"""Qwen2.5-VL: one bicubic image, normalised and cut into patches."""

NOTE = "Preprocessing was measured on one core of an AMD EPYC of family 26 (Zen 5)"


def with_decoding(cost: PreprocessCost) -> PreprocessCost:
    """The cost of images that come as files."""
    return PreprocessCost(
        base_s=cost.base_s + DECODING.base_s,
        per_pixel_s=cost.per_pixel_s + DECODING.per_pixel_s,
        per_patch_s=cost.per_patch_s,
    )
