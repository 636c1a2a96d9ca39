# SPDX-License-Identifier: Apache-2.0
import random
from itertools import count

import pytest

from vllm_epd.planner.fleet import Fleet, Limits
from vllm_epd.planner.search.demand import capacity
from vllm_epd.planner.search.families import families
from vllm_epd.planner.search.objective import Goodput, Score
from vllm_epd.planner.search.search import Budget, search
from vllm_epd.planner.search.space import Choices, build, walk
from vllm_epd.planner.search.starts import start, starts
from vllm_epd.planner.simulate.run import simulate
from vllm_epd.topology import Topology
from vllm_epd.types import Role

CHOICES = Choices(
    encode_items=(1, 2, 4, 8),
    prefill_sequences=(1, 4, 16),
    decode_sequences=(8, 32, 128),
    batched_tokens=(2048, 8192),
    policies=("least_loaded", "round_robin"),
    orders=("fcfs", "sjf"),
    irp_degrees=(None, 1),
)
SECONDS = {Role.ENCODE: 1.0, Role.PREFILL: 0.4, Role.DECODE: 0.5}


class Known:
    """An objective with a known best: the capacity of the topology, less for each limit that is off."""

    def __init__(self):
        self.asked = []

    def score(self, fleet, best):
        self.asked.append(fleet)
        limits = fleet.limits
        off = (
            abs(limits.encode_items - 4) / 8 + abs(limits.decode_sequences - 32) / 128 + (limits.batched_tokens > 4000)
        )
        off += sum(policy != "least_loaded" for policy in fleet.policies.values()) / 4
        value = capacity(SECONDS, fleet.topology) - off
        return Score(value, max(value, 0.0), 1.0)

    def enough(self, score):
        return False


@pytest.fixture
def space():
    return build(6, families(media=True), lambda kind, limits: None, CHOICES, Fleet(Topology(())))


def _search(space, objective, trials, begin=(), seed=1, **more):
    return search(
        space, objective, begin, seed, Budget(trials, **more), clock=count().__next__, progress=lambda *_: None
    )


def test_what_is_found_is_the_best_there_is(space, every):
    few = space.of(4)
    best = max(Known().score(fleet, None).value for fleet in every(few))
    found = _search(few, Known(), 200)
    assert found[0].score.value == pytest.approx(best, rel=0.02)
    assert [trial.score.value for trial in found] == sorted((trial.score.value for trial in found), reverse=True)


class Blind:
    """Answers a walk with what is drawn, whatever came of it before."""

    def __init__(self, seed):
        self._drawn = random.Random(seed)

    def among(self, what, options):
        return self._drawn.choice(options)

    along = among


def test_a_sampler_that_learns_beats_one_that_does_not(space):
    learnt = [_search(space, Known(), 120, seed=seed)[0].score.value for seed in range(3)]
    choosers = [Blind(seed) for seed in range(3)]
    blind = [max(Known().score(walk(space, chooser), None).value for _ in range(120)) for chooser in choosers]
    assert sum(learnt) > sum(blind)


def test_same_seed_same_search(space):
    first, second, other = (Known() for _ in range(3))
    assert _search(space, first, 60) == _search(space, second, 60)
    _search(space, other, 60, seed=2)
    assert first.asked == second.asked != other.asked


def test_search_begins_where_it_is_told_to(space):
    topology = Topology.parse("3E1P2D")
    begin = start(space, topology, Limits(4, 4, 32, 2048))
    known = Known()
    _search(space, known, 3, [begin])
    assert known.asked[0].topology == topology
    assert known.asked[0].limits == begin.limits
    assert known.asked[0].policies == {Role.ENCODE: "least_loaded", Role.DECODE: "least_loaded"}


def test_each_start_is_one_of_the_space_and_is_found_again(space):
    begin = starts(space, lambda limits: SECONDS, Limits(), most=100)
    assert len(begin) == len(space.limits)
    known = Known()
    _search(space, known, len(begin), begin)
    assert [fleet.topology for fleet in known.asked] == [fleet.topology for fleet in begin]
    assert [fleet.limits for fleet in known.asked] == [fleet.limits for fleet in begin]


def test_what_is_promising_comes_first(space):
    begin = starts(space, lambda limits: SECONDS, Limits(), most=3)
    assert len(begin) == 3
    assert str(begin[0].topology) == "6EPD"


def test_time_ends_a_search_after_its_starts(space):
    begin = starts(space, lambda limits: SECONDS, Limits(), most=4)
    known = Known()
    _search(space, known, 1000, begin, seconds=1)
    assert len(known.asked) == 4
    known = Known()
    _search(space, known, 1000, begin, seconds=10)
    assert 4 < len(known.asked) < 20


def test_time_does_not_end_a_search_that_has_looked_at_too_few(space):
    known = Known()
    _search(space, known, 1000, seconds=1, least=30)
    assert len(known.asked) >= 30 - 5  # a fleet that is drawn again is not looked at again
    known = Known()
    _search(space, known, 10, seconds=1, least=30)
    assert len(known.asked) <= 10


def test_search_ends_when_it_has_enough(space):
    class Content(Known):
        def enough(self, score):
            return score.value > 1.0

    content = Content()
    _search(space, content, 1000)
    assert len(content.asked) < 200


def test_best_of_a_small_space_of_real_fleets(problem, every):
    """All fleets simulated, against a search that looks at half of them."""
    sought = problem("internvl2-8b@a100-80gb", (2.4, 0.06), 3, images=2, image_sizes=("2000x1500",), output_tokens=10)
    choices = Choices((1, 4), (1, 8), (32,), (4096,), ("least_loaded",), ("fcfs",), (None,))
    space = build(3, families(media=True), lambda kind, limits: None, choices, sought.base)
    requests = sought.requests(0, 100)

    def run(fleet, arriving):
        return simulate(fleet, sought.profile, arriving)

    objective = Goodput(run, requests, sought.slo, lambda fleet: 3.0)
    fleets = list(every(space))
    best = max(objective.near(fleet, 3.0, 1.3).rate for fleet in fleets)
    found = _search(space, objective, len(fleets) // 2)
    assert found[0].score.rate >= 0.97 * best
