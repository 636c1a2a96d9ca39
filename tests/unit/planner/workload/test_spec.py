# SPDX-License-Identifier: Apache-2.0
"""Descriptions of workloads, good and bad."""

from textwrap import dedent

import pytest

from vllm_epd.errors import ConfigError
from vllm_epd.planner.workload.spec import (
    Choices,
    Gamma,
    LogNormal,
    Poisson,
    RequestClass,
    Reuse,
    Trace,
    WorkloadSpec,
    load_workload,
    read_workload,
)

EXAMPLE = """
    seed: 1
    requests: 500
    arrivals: {kind: gamma, rate: 2.5, cv: 2}
    classes:
      - weight: 3
        text_tokens: {kind: lognormal, mean: 200, cv: 1}
        output_tokens: 100
        images: {kind: choices, values: [1, 2, 4]}
        image_sizes: [1280x720, 4032x3024]
    reuse: {share: 0.3, pool: 200, zipf: 1}
"""


@pytest.fixture
def written(tmp_path):
    def write(text):
        (tmp_path / "workload.yaml").write_text(dedent(text))
        return tmp_path / "workload.yaml"

    return write


def test_a_file_describes_a_workload(written):
    spec = load_workload(written(EXAMPLE))
    (kind,) = spec.classes
    assert spec.arrivals == Gamma(2.5, 2.0)
    assert (kind.text_tokens, kind.output_tokens) == (LogNormal(200.0, 1.0), 100)
    assert (kind.images, kind.image_sizes) == (Choices((1.0, 2.0, 4.0)), ("1280x720", "4032x3024"))
    assert (spec.requests, spec.seed, spec.reuse) == (500, 1, Reuse(0.3, 200, 1.0))


def test_what_is_given_beside_a_file_wins(written):
    spec = load_workload(written(EXAMPLE), {"requests": 7, "arrivals": {"kind": "poisson", "rate": 1}})
    assert (spec.requests, spec.arrivals) == (7, Poisson(1.0))


def test_a_trace_lies_beside_the_file_that_names_it(written, tmp_path):
    spec = load_workload(written("arrivals: {kind: trace, file: log.jsonl}"))
    assert spec.arrivals == Trace(str(tmp_path / "log.jsonl"))
    assert spec.rate is None
    assert spec.at_rate(2.0).rate == 2.0


INF = float("inf")
POISSON = {"kind": "poisson", "rate": 1}
BAD = {
    "no arrivals": ({}, "missing required field `arrivals`"),
    "unknown arrivals": ({"arrivals": {"kind": "weekly"}}, "Invalid value 'weekly' - at `$.arrivals.kind`"),
    "a negative rate": ({"arrivals": {"kind": "poisson", "rate": -1}}, "above 0 requests per second, got -1"),
    "no rate": ({"arrivals": {"kind": "gamma", "rate": 0, "cv": 1}}, "above 0 requests per second, got 0"),
    "a rate that is no number": ({"arrivals": {"kind": "poisson", "rate": "many"}}, "got `str` - at `$.arrivals.rate`"),
    "a cv of 0": ({"arrivals": {"kind": "gamma", "rate": 1, "cv": 0}}, "a cv above 0, got 0"),
    "an empty burst": ({"arrivals": {"kind": "bursts", "rate": 1, "size": 0}}, "at least 1 request, got 0"),
    "an unknown setting": ({"arrivals": POISSON, "speed": 1}, "unknown field `speed`"),
    "both ends": ({"arrivals": POISSON, "requests": 1, "duration_s": 1}, "requests or duration_s, not both"),
    "no requests": ({"arrivals": POISSON, "requests": 0}, "at least 1 request, got 0"),
    "no classes": ({"arrivals": POISSON, "classes": []}, "at least one class"),
    "a size that is none": ({"arrivals": POISSON, "classes": [{"image_sizes": ["large"]}]}, "got 'large' - at `$.cl"),
    "an empty size": ({"arrivals": POISSON, "classes": [{"image_sizes": ["0x9"]}]}, "WIDTHxHEIGHT, got '0x9'"),
    "negative images": ({"arrivals": POISSON, "classes": [{"images": -1}]}, "images of at least 0, got -1"),
    "a weight of 0": ({"arrivals": POISSON, "classes": [{"weight": 0}]}, "a weight above 0, got 0"),
    "bounds the wrong way": (
        {"arrivals": POISSON, "classes": [{"text_tokens": {"kind": "uniform", "low": 9, "high": 1}}]},
        "low <= high, got 9 and 1 - at `$.classes[0].text_tokens`",
    ),
    "weights of others": (
        {"arrivals": POISSON, "classes": [{"images": {"kind": "choices", "values": [1, 2], "weights": [1]}}]},
        "expected 2 weights above 0, got [1.0]",
    ),
    "a negative seed": ({"arrivals": POISSON, "seed": -1}, "a seed of at least 0, got -1"),
    "an endless cv": ({"arrivals": {"kind": "gamma", "rate": 1, "cv": INF}}, "a cv above 0, got inf"),
    "an endless mean": (
        {"arrivals": POISSON, "classes": [{"images": {"kind": "lognormal", "mean": INF, "cv": 1}}]},
        "above 0, got inf and 1",
    ),
    "an endless choice": (
        {"arrivals": POISSON, "classes": [{"images": {"kind": "choices", "values": [INF]}}]},
        "got [inf]",
    ),
    "an endless weight": ({"arrivals": POISSON, "classes": [{"weight": INF}]}, "a weight above 0, got inf"),
    "an endless duration": ({"arrivals": POISSON, "duration_s": INF}, "a duration_s above 0, got inf"),
    "too many": ({"arrivals": POISSON, "duration_s": 1e9}, "10,000,000 requests at most"),
    "an endless exponent": ({"arrivals": POISSON, "reuse": {"zipf": INF}}, "exponent of at least 0, got inf"),
    "a size without weight": (
        {"arrivals": POISSON, "classes": [{"image_sizes": {"9x9": 0}}]},
        "1 weights above 0, got",
    ),
    "more than all": ({"arrivals": POISSON, "reuse": {"share": 2}}, "a share from 0 to 1, got 2"),
}


@pytest.mark.parametrize(("values", "message"), BAD.values(), ids=BAD.keys())
def test_what_describes_no_workload_is_refused(values, message):
    with pytest.raises(ConfigError) as refused:
        read_workload(values, "workload.yaml")
    assert str(refused.value).startswith("workload.yaml: ")
    assert message in str(refused.value)


@pytest.mark.parametrize("rate", [-1.0, 0.0, INF, float("nan")])
@pytest.mark.parametrize("arrivals", [Poisson(1.0), Trace("log.jsonl")], ids=["drawn", "trace"])
def test_what_is_no_rate_is_refused(arrivals, rate):
    with pytest.raises(ConfigError, match=f"a rate above 0 requests per second, got {rate}"):
        WorkloadSpec(arrivals).at_rate(rate)


def test_another_rate_is_the_only_change():
    spec = WorkloadSpec(Poisson(1.0), (RequestClass(images=2),), requests=3)
    assert spec.at_rate(2.0) == WorkloadSpec(Poisson(2.0), (RequestClass(images=2),), requests=3)
