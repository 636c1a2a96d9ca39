# SPDX-License-Identifier: Apache-2.0
"""Instances that change their roles."""

from collections import Counter
from math import inf

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.planner.simulate.conftest import PROFILE, STEP_S
from vllm_epd.errors import ConfigError
from vllm_epd.planner.fleet import Fleet, Limits
from vllm_epd.planner.simulate.run import simulate
from vllm_epd.planner.simulate.switching import Change, StageLoad, Switches, Threshold
from vllm_epd.planner.workload.generate import generate
from vllm_epd.planner.workload.requests import Request
from vllm_epd.planner.workload.spec import Choices, Poisson, RequestClass, Uniform, WorkloadSpec
from vllm_epd.topology import Topology
from vllm_epd.types import Role, RoleSet

E, P, D = (RoleSet.of([role]) for role in Role)
MIXED = RequestClass(text_tokens=Uniform(1, 900), output_tokens=Uniform(1, 40), images=Choices((0.0, 2.0)))


def fleet(topology, **settings):
    return Fleet(Topology.parse(topology), tier="none", **settings)


def looks(**fills):
    """Looks at the stages, each given as how many requests its two instances have to do, one at once each."""
    count = max(map(len, fills.values()))
    return [
        {role: StageLoad(0, fills.get(role.value, [0] * count)[index], 2, 1) for role in Role} for index in range(count)
    ]


def test_a_stage_is_as_full_as_it_has_to_do_for_what_it_can_do_at_once():
    assert StageLoad(waiting=3, active=5, instances=2, at_once=4).fill == 1.0
    assert StageLoad(waiting=1, active=0, instances=0, at_once=4).fill == inf
    assert StageLoad(waiting=0, active=0, instances=0, at_once=4).fill == 0.0


DECISIONS = {
    "full and empty for long enough": (looks(decode=[9, 9, 9], encode=[0, 0, 0], prefill=[2, 2, 2]), Change(E, D)),
    "the emptiest one gives": (looks(decode=[9, 9, 9], encode=[1, 1, 1], prefill=[0, 0, 0]), Change(P, D)),
    "not for long enough": (looks(decode=[0, 9, 9]), None),
    "too few looks": (looks(decode=[9, 9]), None),
    "nothing is full": (looks(decode=[1, 1, 1]), None),
    "nothing is empty": (looks(decode=[9, 9, 9], encode=[2, 2, 2], prefill=[2, 2, 2]), None),
}


@pytest.mark.parametrize(("seen", "change"), DECISIONS.values(), ids=DECISIONS.keys())
def test_an_instance_moves_where_stages_are_far_apart_for_some_looks(seen, change):
    assert Threshold(low=1.0, high=2.0)(seen) == change


def test_no_stage_gives_its_last_instance():
    alone = [{role: StageLoad(0, 9 if role is Role.DECODE else 0, 1, 1) for role in Role}] * 3
    assert Threshold()(alone) is None


def test_an_instance_finishes_what_it_has_then_loads_then_works_in_its_new_role():
    """D1 has a long answer when it is asked to become P; until then all prompts go to P0, afterwards to both."""
    switches = Switches(planned=[(0.5, Change(D, P))], light_s=1.0)
    generating = [Request(number, 0.0, 10, 101) for number in range(2)]
    spans = []
    late = [Request(number, 10.0, 1000, 1) for number in range(2, 4)]
    simulate(
        fleet("1P2D", limits=Limits(prefill_sequences=1)),
        PROFILE,
        [*generating, *late],
        switches=switches,
        trace=lambda *span: spans.append(span),
    )
    (leaving, _, begun, ended) = next(span for span in spans if span[1] == "switch")
    decoded = next(end for name, what, _, end in spans if name == leaving and what == "decode")
    assert begun == pytest.approx(decoded)
    assert begun > 100 * STEP_S
    assert ended - begun == pytest.approx(1.0)
    assert sorted(name for name, what, begun, _ in spans if what == "prefill" and begun >= 10) == ["D0", "P0"]
    assert [end for _, what, begun, end in spans if what == "prefill" and begun >= 10] == pytest.approx([11.0, 11.0])


@pytest.mark.parametrize(("change", "seconds"), [(Change(P, D), 0.1), (Change(E, D), 0.7), (Change(D, E), 0.7)])
def test_weights_take_time_where_they_change(change, seconds):
    assert Switches().takes_s(change) == seconds


def test_the_last_of_its_roles_stays():
    requests = [Request(number, float(number), 10, 5) for number in range(5)]
    plain = simulate(fleet("1P1D"), PROFILE, requests)
    assert simulate(fleet("1P1D"), PROFILE, requests, switches=Switches(planned=[(1.5, Change(P, D))])) == plain


def test_changes_that_are_planned_for_one_time_follow_each_other():
    spans = []
    switches = Switches(planned=[(0.0, Change(P, D)), (0.0, Change(P, D))], light_s=1.0)
    simulate(fleet("3P1D"), PROFILE, [Request(0, 5.0, 10, 5)], switches=switches, trace=lambda *s: spans.append(s))
    assert [span[2:] for span in spans if span[1] == "switch"] == [(0.0, 1.0), (1.0, 2.0)]


@pytest.mark.parametrize("wrong", [{"interval_s": 0.0}, {"seconds": -1.0}, {"light_s": -1.0}])
def test_times_that_there_cannot_be_are_refused(wrong):
    with pytest.raises(ConfigError, match="0 s"):
        Switches(**wrong)


@pytest.mark.parametrize("wrong", [{"low": 1.0, "high": 1.0}, {"low": -1.0}, {"looks": 0}])
def test_thresholds_that_contradict_each_other_are_refused(wrong):
    with pytest.raises(ConfigError, match="thresholds need"):
        Threshold(**wrong)


ROLES = st.sampled_from([E, P, D])
PLANS = st.lists(st.tuples(st.floats(0, 60), st.builds(Change, ROLES, ROLES)), max_size=6)


@given(plan=PLANS, decides=st.booleans(), pulls=st.booleans(), rate=st.floats(0.1, 5), seed=st.integers(0, 99))
def test_whatever_changes_every_request_is_served_once_and_memory_is_never_above_capacity(
    plan, decides, pulls, rate, seed
):
    requests = generate(WorkloadSpec(Poisson(rate), (MIXED,), requests=25, seed=seed))
    decide = Threshold(low=0.4, high=0.6, looks=2) if decides else None
    switches = Switches(decide, planned=plan)
    limits = Limits(encode_items=1, prefill_sequences=1, decode_sequences=3)
    outcome = simulate(fleet("3E2P2D", limits=limits, pulls=pulls), PROFILE, requests, switches=switches)
    assert Counter(each.number for each in outcome.served) == Counter(range(25))
    for use in outcome.uses:
        assert use.peak_kv_tokens <= use.kv_tokens
        assert use.peak_embedding_tokens <= use.embedding_tokens
        assert use.busy_s <= outcome.end + 1e-6


def test_switching_follows_a_load_that_moves_from_prompts_to_answers():
    """Long prompts with single tokens, then short prompts with long answers, at decoders of one sequence."""
    prompts = [Request(number, 0.3 * number, 400, 1) for number in range(50)]
    answers = [Request(50 + number, 15 + 0.3 * number, 10, 100) for number in range(150)]
    run = fleet("4P1D", limits=Limits(prefill_sequences=1, decode_sequences=1), pulls=True)
    kept = simulate(run, PROFILE, [*prompts, *answers])
    moved = simulate(run, PROFILE, [*prompts, *answers], switches=Switches(Threshold(looks=2)))
    assert moved.end < 0.5 * kept.end
    assert sum("P" in each.decode for each in moved.served if each.output_tokens > 1) > 50
