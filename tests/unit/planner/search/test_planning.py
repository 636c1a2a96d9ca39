# SPDX-License-Identifier: Apache-2.0
"""Whole plans with derived profiles."""

import json
from itertools import count

import msgspec
import pytest

from vllm_epd.errors import ConfigError
from vllm_epd.planner.fleet import Fleet
from vllm_epd.planner.search.ground import prepare
from vllm_epd.planner.search.planning import plan
from vllm_epd.planner.search.report import deploy, numbers, text
from vllm_epd.planner.search.search import Budget
from vllm_epd.planner.search.sought import Way
from vllm_epd.planner.search.space import Choices
from vllm_epd.topology import Topology

CHOICES = Choices(
    encode_items=(1, 4),
    prefill_sequences=(2, 8),
    decode_sequences=(16, 64),
    batched_tokens=(2048, 8192),
    policies=("least_loaded",),
    orders=("fcfs",),
    irp_degrees=(None,),
)
SIX_LARGE = {"images": 6, "image_sizes": ("4032x3024",), "text_tokens": 22, "output_tokens": 10}
LIGHT = {"images": 1, "image_sizes": ("640x640",), "text_tokens": 500, "output_tokens": 300}
TWO = {"images": 2, "output_tokens": 10}
TEXT = {"text_tokens": 2000, "output_tokens": 300}


def _plan(problem, trials=24):
    return plan(problem, Budget(trials), clock=count().__next__, progress=lambda step: None)


def _goodputs(found):
    return {each.way: each.goodput for each in found.contenders}


@pytest.fixture(autouse=True)
def _short(monkeypatch):
    """Runs with fewer requests."""
    monkeypatch.setattr("vllm_epd.planner.search.ground.MOST", 100)


@pytest.fixture
def hasty(monkeypatch):
    """Few requests for a GPU, and few fleets to begin with."""
    monkeypatch.setattr("vllm_epd.planner.search.ground.MOST", 15)
    monkeypatch.setattr("vllm_epd.planner.search.planning.STARTS", 2)


@pytest.mark.slow
def test_large_images_where_workers_preprocess_pay_for_encoders_of_their_own(problem):
    base = Fleet(Topology(()), workers_preprocess=True)
    found = _plan(problem("minicpm-v-2.6@a100-80gb-eager", (2.0, 0.06), 8, choices=CHOICES, base=base, **SIX_LARGE))
    assert found.verdict.pays
    assert found.verdict.chosen is Way.ENCODE_APART
    assert found.verdict.text.startswith("Disaggregation pays")
    goodputs = _goodputs(found)
    assert goodputs[Way.ENCODE_APART] > 1.1 * max(goodputs[Way.REPLICATED], goodputs[Way.PREFILL_DECODE])


def test_text_should_not_be_disaggregated(problem):
    found = _plan(problem("qwen2.5-vl-7b@h100", (2.0, 0.05), 4, choices=CHOICES, **TEXT), trials=16)
    assert not found.verdict.pays
    assert found.chosen.way is Way.REPLICATED
    assert str(found.chosen.whole) == "4PD"
    assert found.verdict.text.startswith("Disaggregation does not pay")
    assert Way.ENCODE_APART not in _goodputs(found)
    assert not any(each.goodput for each in found.sensitivity.values())


def test_encoders_of_their_own_lose_for_a_large_dense_model_with_light_images(problem):
    found = _plan(problem("gemma-3-27b@h100", (2.0, 0.05), 4, choices=CHOICES, **LIGHT), trials=16)
    goodputs = _goodputs(found)
    assert goodputs[Way.ENCODE_APART] < max(goodputs[Way.CO_LOCATED], goodputs[Way.REPLICATED])
    assert found.verdict.chosen is not Way.ENCODE_APART


def test_same_seed_same_plan(problem):
    sought = problem("internvl2-8b@a100-80gb", (2.4, 0.06), 3, choices=CHOICES, **TWO)
    first, second = (_plan(sought, trials=12) for _ in range(2))
    run = deploy(first, None)
    assert text(first, run, "c") == text(second, deploy(second, None), "c")


def test_report_says_all(problem):
    sought = problem("internvl2-8b@a100-80gb", (2.4, 0.06), 3, choices=CHOICES, **TWO)
    found = _plan(sought, trials=12)
    run = deploy(found, "OpenGVLab/InternVL2-8B")
    report = text(found, run, "vllm-epd up --config plan.yaml")
    assert report.startswith(found.verdict.text)
    for part in (
        "Plan\n",
        "Ways to share out",
        "Runners-up",
        "If other traffic comes",
        "0.5 x goodput",
        "2 x the media",
    ):
        assert part in report
    assert "  vllm-epd up --config plan.yaml\n" in report
    assert 'model: "OpenGVLab/InternVL2-8B"' in report
    told = json.loads(json.dumps(numbers(found, run, "c")))
    assert told["verdict"]["text"] == found.verdict.text
    assert {way["way"] for way in told["ways"]} == {way.value for way in Way}
    assert all(way["gpus"] == 3 for way in told["ways"])
    assert [point["media"] for point in told["sensitivity"]["replicated"]["goodput"]] == [0.5, 2.0]
    attained = [point["attainment"] for point in told["sensitivity"][found.verdict.chosen.value]["attainment"]]
    assert attained[0] > 0.95
    assert attained[-1] < 0.9
    assert attained == sorted(attained, reverse=True)


def test_fewest_gpus_at_a_rate(problem):
    sought = problem("internvl2-8b@a100-80gb", (2.4, 0.06), 6, rate=1.5, choices=CHOICES, **TWO)
    found = _plan(sought, trials=16)
    fewer = found.chosen.gpus
    assert fewer < 6
    assert found.chosen.attainment > 0.85
    assert all(each.gpus >= fewer for each in found.contenders if each.enough)
    # One GPU less serves less than what is asked for, whatever is tried.
    if fewer > 1:
        with pytest.raises(ConfigError, match=f"{fewer - 1} GPUs? cannot keep .* at 1.5 requests/s: the best of"):
            _plan(
                problem(
                    "internvl2-8b@a100-80gb",
                    (2.4, 0.06),
                    fewer - 1,
                    rate=1.5,
                    choices=CHOICES,
                    images=2,
                    output_tokens=10,
                ),
                8,
            )


def test_large_fleet_is_many_cells(problem, hasty):
    sought = problem("internvl2-8b@a100-80gb", (2.4, 0.06), 1000, choices=CHOICES, **TWO)
    found = _plan(sought, trials=4)
    assert found.ground.cell == 20
    assert found.chosen.whole.size == 1000
    assert found.chosen.cells == 50
    told = "A cell of 20 GPUs was simulated with its part of the load, and the plan is 50 times"
    assert told in text(found, deploy(found, None), "c")


def test_rate_for_a_large_fleet_takes_as_many_gpus_as_the_cell_says(problem, hasty):
    found = _plan(problem("internvl2-8b@a100-80gb", (2.4, 0.06), 1000, rate=100.0, choices=CHOICES, **TWO), trials=4)
    assert 20 < found.chosen.gpus < 1000
    assert found.chosen.goodput == pytest.approx(100.0, rel=0.02)


def test_nobody_keeps_what_only_a_lone_request_could_have(problem):
    profile = problem("internvl2-8b@a100-80gb", (1, 1), 2).profile
    slow = msgspec.structs.replace(profile, overhead=msgspec.structs.replace(profile.overhead, prefill_s=5.0))
    with pytest.raises(ConfigError, match="no fleet keeps a TTFT of 2 s .* at any rate"):
        _plan(problem(slow, (2.0, 0.06), 2, choices=CHOICES, images=1, output_tokens=10), trials=4)


def test_goodputs_are_sought_with_fewer_requests_than_they_are_compared_on(problem, monkeypatch):
    monkeypatch.setattr("vllm_epd.planner.search.ground.MOST", 10_000)
    goodput = prepare(problem("internvl2-8b@a100-80gb", (2.4, 0.06), 8, **TWO))
    assert len(goodput.searching) < len(goodput.comparing[0])
    at_rate = prepare(problem("internvl2-8b@a100-80gb", (2.4, 0.06), 8, rate=1.0, **TWO))
    assert len(at_rate.searching) == len(at_rate.comparing[0])
