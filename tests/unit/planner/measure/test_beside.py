# SPDX-License-Identifier: Apache-2.0
"""Work of processes that no request waits for."""

import pytest

from vllm_epd.planner.measure.beside import beside_s
from vllm_epd.planner.measure.chat import Answer, Shot
from vllm_epd.planner.measure.samples import Measured, Sample, Shape
from vllm_epd.planner.profile.profile import (
    DecodeCost,
    EncodeCost,
    Native,
    Overhead,
    PrefillCost,
    PreprocessCost,
)

MEDIA = Native(patch=14, merge=2, least_pixels=3136, most_pixels=1003520)
COSTS = (
    PreprocessCost(base_s=0.01, per_pixel_s=0.0, per_patch_s=0.0),
    EncodeCost(base_s=0.02, per_patch_s=0.0),
    PrefillCost(base_s=0.04, per_token_s=0.0, per_pair_s=0.0),
    DecodeCost(base_s=0.003, per_sequence_s=0.0, per_context_s=0.0),
    Overhead(router_s=0.001, encode_s=0.002, prefill_s=0.004, decode_s=0.008, token_s=0.0005),
)


def sample(images: int, all_s: float | None) -> Sample:
    answer = Answer(0.1, 0.2, (0.1, 0.2), 50, {})
    return Sample("image" if images else "text", (Shot(8, ((56, 56),) * images, 5),), (answer,), {}, all_s=all_s)


def measured(*samples: Sample, apart: bool) -> Measured:
    return Measured(samples, MEDIA, Shape(apart, apart, True), 1, 1)


def test_what_the_costs_do_not_tell_is_shared_out_over_the_stages_that_are_asked():
    text = 0.04 + 4 * 0.003 + 0.004 + 0.001 + 5 * 0.0005 + 0.008 + 0.001
    image = text + 0.02 + 0.01 + 0.002 + 0.001
    samples = sample(0, text + 2 * 0.006), sample(1, image + 3 * 0.006)
    assert beside_s(measured(*samples, apart=True), *COSTS) == pytest.approx(0.006)


def test_one_instance_is_asked_once():
    image = 0.04 + 4 * 0.003 + 0.004 + 0.001 + 5 * 0.0005 + 0.02 + 0.01
    assert beside_s(measured(sample(1, image + 0.006), apart=False), *COSTS) == pytest.approx(0.006)


def test_it_is_none_where_processes_are_elsewhere():
    assert beside_s(measured(sample(0, None), apart=True), *COSTS) == 0
