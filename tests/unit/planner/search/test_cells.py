# SPDX-License-Identifier: Apache-2.0
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vllm_epd.planner.search.cells import LARGEST, cell_of, scaled
from vllm_epd.topology import Topology


@pytest.mark.parametrize(
    ("gpus", "cell"), [(1, 1), (8, 8), (24, 24), (25, 24), (32, 16), (1000, 20), (1024, 16), (997, 24)]
)
def test_large_fleets_are_cells(gpus, cell):
    assert cell_of(gpus) == cell


def test_a_plan_of_a_cell_is_that_of_the_fleet():
    assert str(scaled(Topology.parse("12E4P4D"), 1000)) == "600E200P200D"
    assert str(scaled(Topology.parse("1E1P1D"), 8)) == "3E3P2D"
    assert str(scaled(Topology.parse("8EPD"), 8)) == "8EPD"


@given(counts=st.lists(st.integers(1, 20), min_size=1, max_size=3), gpus=st.integers(3, 3000))
def test_no_gpu_and_no_group_is_lost(counts, gpus):
    topology = Topology.parse(
        "".join(f"{count}{letters}" for count, letters in zip(counts, "EPD", strict=False)) + "1PD"
    )
    if gpus < topology.size:
        gpus = topology.size
    whole = scaled(topology, gpus)
    assert whole.size == gpus
    assert [group.roles for group in whole.groups] == [group.roles for group in topology.groups]
    for before, after in zip(topology.groups, whole.groups, strict=True):
        assert abs(after.count - before.count * gpus / topology.size) <= 1


def test_a_cell_is_never_larger_than_what_is_simulated():
    assert all(LARGEST // 2 <= cell_of(gpus) <= LARGEST for gpus in range(LARGEST, 3000))
