# SPDX-License-Identifier: Apache-2.0
"""How much engines slow each other down, from samples whose contention is known."""

import pytest

from vllm_epd.planner.measure.chat import Answer, Shot
from vllm_epd.planner.measure.contention import contention
from vllm_epd.planner.measure.meters import Meters
from vllm_epd.planner.measure.samples import Measured, Sample, Shape
from vllm_epd.planner.profile.profile import Native, PrefillCost
from vllm_epd.types import Role

STEP_S, PROMPT_S, STEPS = 0.002, 0.05, 400
PREFILL = PrefillCost(base_s=0.01, per_token_s=0.0, per_pair_s=0.0)
ANSWER, PROMPT, TEXT = Shot(16, (), STEPS + 2), Shot(1024), Shot(1024, (), 4)
"""Of tokens that are generated, the first comes from elsewhere, and with the second one the steps begin."""


def answer(step_s: float) -> Answer:
    moments = (0.0, *(0.01 + number * step_s for number in range(STEPS + 1)))
    return Answer(0.0, moments[-1], moments, 20, {})


def sample(series: str, shots: tuple[Shot, ...], answers: tuple[Answer, ...], prefill_s: float, **other) -> Sample:
    meters = {Role.PREFILL: Meters(prefill_s=prefill_s), Role.DECODE: Meters()}
    return Sample(series, shots, answers, meters, **other)


def measured(*contended: Sample) -> Measured:
    alone = sample("alone", (ANSWER,), (answer(STEP_S),), 0.01)
    text = sample("text", (TEXT,), (answer(STEP_S),), PROMPT_S)
    media = Native(patch=14, merge=2, least_pixels=3136, most_pixels=1003520)
    return Measured((alone, text, *contended), media, Shape(True, True, True), 1, 1)


def beside(slower: float, *, late_s: float = 0.0, **other) -> Sample:
    """The answer while prompts are prefilled, both so much slower; the last prompt goes on for a while after it."""
    generated = answer(STEP_S * slower)
    window_s = generated.moments[-1] - generated.moments[1]
    prompts = round(window_s / (PROMPT_S * slower))
    last = Answer(0.0, 0.0, (generated.moments[-1] + late_s,), 2000, {})
    prefill_s = 0.01 + prompts * PROMPT_S * slower
    return sample("contended", (ANSWER, *(PROMPT,) * prompts), (generated, *(last,) * prompts), prefill_s, **other)


@pytest.mark.parametrize("slower", [1.0, 1.25, 1.6])
def test_what_both_take_longer_is_contention(slower: float):
    assert contention(measured(beside(slower)), PREFILL, cores=8) == pytest.approx(slower - 1, abs=0.01)


def test_what_sharing_cores_explains_is_none():
    window_s = STEPS * STEP_S * 1.25
    assert contention(measured(beside(1.25, router_s=window_s / 2)), PREFILL, cores=2) == pytest.approx(0, abs=0.01)
    assert contention(measured(beside(1.5, client_s=window_s * 0.6)), PREFILL, cores=2) == pytest.approx(0.2, abs=0.01)


def test_a_prompt_that_goes_on_after_the_answer_counts_in_part():
    busy = beside(1.25, late_s=0.03)
    assert contention(measured(busy), PREFILL, cores=8) == pytest.approx(0.25, abs=0.02)


def test_it_is_0_where_it_was_not_measured():
    assert contention(measured(), PREFILL, cores=2) == 0
