# SPDX-License-Identifier: Apache-2.0
"""Workloads that are drawn: their laws."""

from itertools import pairwise
from math import sqrt
from statistics import mean, pstdev

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vllm_epd.errors import ConfigError
from vllm_epd.planner.workload.generate import generate
from vllm_epd.planner.workload.requests import Item, Kind, Request
from vllm_epd.planner.workload.spec import (
    Bursts,
    Choices,
    Gamma,
    LogNormal,
    Poisson,
    RequestClass,
    Reuse,
    Steady,
    Uniform,
    WorkloadSpec,
)

MANY = 4000
SIGMAS = 5.0
"""How far from its expectation a mean of a fixed seed may lie."""

MIXED = RequestClass(
    text_tokens=LogNormal(100.0, 1.0),
    output_tokens=Uniform(1, 9),
    images=Choices((0.0, 1.0, 3.0)),
    image_sizes=("640x480", "4032x3024"),
    videos=Choices((0.0, 1.0), (9.0, 1.0)),
    frames=Uniform(8, 16),
    audios=Choices((0.0, 1.0)),
    audio_s=5,
)

ARRIVALS = {
    "poisson": (Poisson(3.0), 1.0),
    "bursty": (Gamma(3.0, 3.0), 3.0),
    "smooth": (Gamma(3.0, 0.3), 0.3),
    "steady": (Steady(3.0), 0.0),
    "bursts": (Bursts(3.0, 4), sqrt(7.0)),
}
"""Arrivals, and the coefficient of variation of the times between them: of bursts of n, 2n - 1 is its square."""


@pytest.mark.parametrize(("arrivals", "cv"), ARRIVALS.values(), ids=ARRIVALS.keys())
def test_rate_and_variation_are_those_asked_for(arrivals, cv):
    times = [each.at for each in generate(WorkloadSpec(arrivals, requests=MANY, seed=7))]
    gaps = [times[0], *(after - before for before, after in pairwise(times))]
    assert times == sorted(times)
    assert abs(mean(gaps) * 3.0 - 1) <= SIGMAS * cv * 2 / sqrt(MANY)
    assert pstdev(gaps) * 3.0 == pytest.approx(cv, rel=0.15, abs=1e-9)


@given(seed=st.integers(0, 2**31), rates=st.tuples(st.floats(0.01, 100), st.floats(0.01, 100)))
def test_requests_of_one_seed_are_the_same_at_each_rate(seed, rates):
    spec = WorkloadSpec(Poisson(1.0), (MIXED,), requests=20, reuse=Reuse(0.5), seed=seed)
    slow, fast = (generate(spec.at_rate(rate)) for rate in rates)
    assert slow == generate(spec.at_rate(rates[0]))
    for one, other in zip(slow, fast, strict=True):
        assert (one.text_tokens, one.output_tokens, one.items) == (other.text_tokens, other.output_tokens, other.items)
        assert one.at * rates[0] == pytest.approx(other.at * rates[1])


def test_other_seeds_draw_other_requests():
    spec = WorkloadSpec(Poisson(1.0), (MIXED,), requests=20)
    assert generate(spec) == generate(spec, seed=0) != generate(spec, seed=1)


def test_contents_are_drawn_from_what_is_asked_for():
    requests = generate(WorkloadSpec(Poisson(1.0), (MIXED,), requests=MANY))
    items = [item for each in requests for item in each.items]
    images = [item for item in items if item.kind is Kind.IMAGE]
    assert {each.output_tokens for each in requests} == set(range(1, 10))
    assert {(item.width, item.height) for item in images} == {(640, 480), (4032, 3024)}
    assert len(images) / MANY == pytest.approx(4 / 3, rel=0.1)
    assert {item.frames for item in items if item.kind is Kind.VIDEO} == set(range(8, 17))
    assert {item.seconds for item in items if item.kind is Kind.AUDIO} == {5.0}
    assert mean(each.text_tokens for each in requests) == pytest.approx(100, abs=SIGMAS * 100 / sqrt(MANY))
    assert [each.number for each in requests] == list(range(MANY))


def test_classes_come_by_their_weights():
    classes = (RequestClass(text_tokens=1, weight=3.0), RequestClass(text_tokens=2))
    requests = generate(WorkloadSpec(Poisson(1.0), classes, requests=MANY))
    share = mean(each.text_tokens == 1 for each in requests)
    assert abs(share - 0.75) <= SIGMAS * sqrt(0.75 * 0.25 / MANY)


def test_sizes_come_by_their_weights():
    kinds = (RequestClass(images=1, image_sizes={"640x480": 3.0, "4032x3024": 1.0}),)
    requests = generate(WorkloadSpec(Poisson(1.0), kinds, requests=MANY))
    share = mean(item.width == 640 for each in requests for item in each.items)
    assert abs(share - 0.75) <= SIGMAS * sqrt(0.75 * 0.25 / MANY)


@pytest.mark.parametrize("arrivals", [each for each, _ in ARRIVALS.values()], ids=ARRIVALS.keys())
def test_a_longer_workload_begins_with_the_requests_of_a_shorter_one(arrivals):
    short, long = (generate(WorkloadSpec(arrivals, (MIXED,), requests=n, reuse=Reuse(0.5))) for n in (30, 90))
    assert long[:30] == short


def test_media_come_again_as_often_as_asked_for_and_with_the_same_size():
    kinds = (RequestClass(images=2, image_sizes=("10x10", "20x20")),)
    requests = generate(WorkloadSpec(Poisson(1.0), kinds, requests=MANY, reuse=Reuse(0.4, pool=10)))
    items = [item for each in requests for item in each.items]
    named = [item for item in items if item.name is not None]
    assert abs(len(named) / len(items) - 0.4) <= SIGMAS * sqrt(0.24 / len(items))
    assert len({item.name for item in named}) == 20  # ten of each size
    assert len({(item.name, item.width) for item in named}) == 20


@given(duration=st.floats(5, 200), arrivals=st.sampled_from([each for each, _ in ARRIVALS.values()]))
def test_a_duration_ends_a_workload(duration, arrivals):
    spec = WorkloadSpec(arrivals, duration_s=duration, seed=3)
    found = generate(spec)
    longer = generate(WorkloadSpec(arrivals, duration_s=2 * duration, seed=3))
    assert found[-1].at <= duration
    assert [each.at for each in longer if each.at <= duration] == [each.at for each in found]


def test_a_duration_in_which_nobody_comes_is_refused():
    with pytest.raises(ConfigError, match=r"no request comes within 0.001 s"):
        generate(WorkloadSpec(Steady(1.0), duration_s=0.001))


BAD = {
    "before the start": (lambda: Request(3, -1.0, 1, 1), "request 3 comes at -1.0 s"),
    "without a token": (lambda: Request(3, 0.0, 0, 1), "at least one token of text and of output, got 0 and 1"),
    "an empty image": (lambda: Item(Kind.IMAGE, 0, 5), "image needs a size of at least 1x1 and a frame, got 0x5 of 1"),
    "silence": (lambda: Item(Kind.AUDIO), "audio needs more than 0 seconds, got 0.0"),
}


@pytest.mark.parametrize(("make", "message"), BAD.values(), ids=BAD.keys())
def test_what_is_no_request_is_refused(make, message):
    with pytest.raises(ConfigError, match=message):
        make()
