# SPDX-License-Identifier: Apache-2.0
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vllm_epd.planner.fleet import Fleet
from vllm_epd.planner.search.fewest import attempts, fewest
from vllm_epd.planner.search.objective import Score
from vllm_epd.planner.search.search import Trial
from vllm_epd.topology import Topology


def _attempt(needed, asked):
    def attempt(gpus):
        asked.append(gpus)
        kept = gpus >= needed
        return [Trial(Fleet(Topology.parse(f"{gpus}EPD")), Score(1.0 if kept else 0.5, 1.0 if kept else 0.0, 0.9))]

    return attempt


@given(least=st.integers(1, 20), more=st.integers(0, 40), over=st.integers(0, 40))
def test_the_fewest_are_found_with_few_attempts(least, more, over):
    most, asked = least + more, []
    needed = min(least + over, most)
    found = fewest(least, most, _attempt(needed, asked))
    assert found[0].fleet.topology.size == needed
    assert found[0].score.rate > 0
    assert len(asked) <= attempts(least, most)


def test_where_all_are_too_few_it_is_asked_once():
    asked = []
    assert fewest(2, 8, _attempt(9, asked))[0].score.rate == 0
    assert asked == [8]


@pytest.mark.parametrize(("least", "most", "number"), [(8, 8, 1), (1, 8, 4), (2, 3, 2)])
def test_attempts(least, most, number):
    assert attempts(least, most) == number
