# SPDX-License-Identifier: Apache-2.0
"""Every experiment loads and runs in a reduced form, and what is committed comes out again."""

import pytest

from experiments.result import load
from experiments.run import RESULTS, find, load_experiment, names
from experiments.setting import STORED, host_factor, reduced
from vllm_epd.errors import ConfigError


@pytest.mark.parametrize("name", names())
def test_an_experiment_runs_in_a_reduced_form(name):
    assert find(reduced(load_experiment(name))).cells


@pytest.mark.parametrize("name", ["table2", "table3", "table8"])
def test_what_is_committed_comes_out_again(name):
    assert find(load_experiment(name)) == load(RESULTS / f"{name}.json").findings


def test_the_host_of_the_stored_outputs_is_slower_than_ours():
    assert 3 < host_factor(STORED) < 4


def test_an_unknown_experiment_is_refused():
    with pytest.raises(ConfigError, match="table1"):
        load_experiment("table99")


def test_a_search_beats_fleets_that_are_drawn():
    found = find(reduced(load_experiment("table5"), count=50, seeds=1))
    goodputs = {(each.variant, each.row): each.ours for each in found.cells if each.column == "goodput"}
    for variant in ("plain", "old host"):
        searched, drawn = goodputs[variant, "optimiser"], goodputs[variant, "random"]
        assert searched > drawn > 0
        assert goodputs[variant, "optimiser / random"] == pytest.approx(searched / drawn, rel=1e-3)
