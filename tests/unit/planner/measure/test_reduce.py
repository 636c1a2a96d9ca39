# SPDX-License-Identifier: Apache-2.0
"""What is made of the time between tokens, on samples whose prices are known."""

from collections.abc import Callable

import pytest

from vllm_epd.errors import ConfigError
from vllm_epd.planner.measure.chat import Answer, Shot
from vllm_epd.planner.measure.links import beside_link_s, reduce_link
from vllm_epd.planner.measure.reduce import added_step_s, reduce_decode
from vllm_epd.planner.measure.samples import Measured, Sample, Shape, step_s
from vllm_epd.planner.profile.costs import decode_s, decode_steps_s, transfer_s
from vllm_epd.planner.profile.profile import DecodeCost, Link, Native, Overhead, PrefillCost

MEDIA = Native(patch=14, merge=2, least_pixels=3136, most_pixels=1003520)
DECODE = DecodeCost(base_s=0.006, per_sequence_s=0.0006, per_context_s=5e-7)
PREFILL = PrefillCost(base_s=0.04, per_token_s=0.0, per_pair_s=0.0)
LINK = Link(latency_s=0.001, bytes_per_s=5e8)
OVERHEAD = Overhead(router_s=0.0007, decode_s=0.004)
KV_BYTES = 1024
OUTPUT = 40


def rounds(added_s: float = 0.0) -> list[Sample]:
    """Of one to eight requests that begin together, with prompts of several lengths; each step takes as long."""
    samples = []
    for together in (1, 2, 4, 8):
        for prompt in (100, 800, 3000):
            context = together * prompt + together * OUTPUT / 2
            step = decode_s(DECODE, together, context) + added_s
            moments = tuple(1.0 + step * number for number in range(OUTPUT))
            answer = Answer(0.1, 0.1 + moments[-1] - 1.0, moments, prompt, {})
            shots = (Shot(prompt, (), OUTPUT),) * together
            samples.append(Sample("decode", shots, (answer,) * together, {}))
    return samples


def measured(samples: list[Sample], *, decode_apart: bool = False) -> Measured:
    return Measured(samples, MEDIA, Shape(False, decode_apart, True), 1, KV_BYTES)


def test_steps_of_decode_are_priced_by_sequences_and_context():
    found, fit = reduce_decode(measured(rounds()))
    assert fit.worst < 1e-6
    for sequences, context in ((1, 100), (3, 5000), (8, 20000)):
        assert decode_s(found, sequences, context) == pytest.approx(decode_s(DECODE, sequences, context), rel=1e-6)


def test_too_few_rounds_are_refused():
    with pytest.raises(ConfigError, match="too few"):
        reduce_decode(measured(rounds()[:2]))


def test_a_step_counts_only_while_all_are_generated_for():
    early, late = (tuple(begin + 0.01 * number for number in range(OUTPUT)) for begin in (0.0, 0.2))
    shots = (Shot(1, (), OUTPUT),) * 2
    answers = tuple(Answer(0.1, 1.0, moments, 10, {}) for moments in (early, late))
    assert step_s(Sample("decode", shots, answers, {}), apart=False) == pytest.approx(0.01)
    apart = (answers[0], Answer(0.1, 1.0, tuple(0.35 + each for each in early), 10, {}))
    assert step_s(Sample("decode", shots, apart, {}), apart=False) is None


def test_pieces_of_several_tokens_count_as_so_many():
    moments = tuple(0.02 * number for number in range(OUTPUT // 2))
    answer = Answer(0.1, 1.0, moments, 10, {})
    tokens_per_piece = (OUTPUT - 1) / (len(moments) - 1)
    one = Sample("decode", (Shot(1, (), OUTPUT),), (answer,), {})
    assert step_s(one, apart=False) == pytest.approx(0.02 / tokens_per_piece)


def test_what_is_taken_over_after_the_first_token_is_no_step():
    moments = (0.0, *(0.5 + 0.01 * number for number in range(OUTPUT - 1)))
    sample = Sample("decode", (Shot(1, (), OUTPUT),), (Answer(0.1, 1.0, moments, 10, {}),), {})
    assert step_s(sample, apart=True) == pytest.approx(0.01)
    assert step_s(sample, apart=False) > 0.02


def test_what_a_connector_adds_to_steps_is_told_apart():
    assert added_step_s(measured(rounds(added_s=0.003)), DECODE) == pytest.approx(0.003)
    assert added_step_s(measured(rounds()), DECODE) == pytest.approx(0.0, abs=1e-9)


def taken_over(seconds: Callable[[float], float]) -> Measured:
    """Requests of text whose KV caches are brought within so many seconds, by bytes."""
    samples = []
    for prompt in (50, 200, 900, 2500):
        generated = decode_steps_s(DECODE, 1, prompt, OUTPUT - 1)
        total = 0.2 + generated + OVERHEAD.router_s + seconds(prompt * KV_BYTES)
        answer = Answer(0.2, total, (0.2, total), prompt, {})
        samples.append(Sample("text", (Shot(prompt, (), OUTPUT),), (answer,), {}))
    return measured(samples, decode_apart=True)


def test_rate_and_latency_of_a_link_are_seen_between_first_and_last_token():
    found, fit = reduce_link(taken_over(lambda nbytes: transfer_s(LINK, nbytes)), PREFILL, DECODE, OVERHEAD)
    assert found is not None
    assert fit is not None
    assert found.latency_s == pytest.approx(LINK.latency_s, rel=1e-3)
    assert found.bytes_per_s == pytest.approx(LINK.bytes_per_s, rel=1e-3)
    assert fit.worst < 1e-3


def test_errors_of_a_link_are_relative_to_what_was_measured_not_to_the_rest_that_it_is():
    _, fit = reduce_link(taken_over(lambda nbytes: 0.002 * (nbytes > 500 * KV_BYTES)), PREFILL, DECODE, OVERHEAD)
    assert fit is not None
    assert 0.0 < fit.worst < 0.05


def test_what_decode_takes_beyond_its_link_is_its_own():
    scene = taken_over(lambda nbytes: transfer_s(LINK, nbytes) + OVERHEAD.decode_s)
    assert beside_link_s(scene, DECODE, OVERHEAD, LINK) == pytest.approx(OVERHEAD.decode_s, rel=1e-3)


def test_nothing_apart_has_no_link():
    assert reduce_link(measured(rounds()), PREFILL, DECODE, OVERHEAD) == (None, None)
