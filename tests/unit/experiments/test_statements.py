# SPDX-License-Identifier: Apache-2.0
"""What experiments say holds in a small version, and in what is committed."""

import json

import msgspec
import pytest

from experiments.figures import draw
from experiments.kinds.goodput import LEAD, LEAST
from experiments.result import Cell, Curve, Findings, Made, Result, load
from experiments.run import RESULTS, find, load_experiment
from experiments.setting import reduced
from experiments.show import main

CASES = {"encoders co-located": 600, "not disaggregated": 1000, "encode tier": 200}
"""Ends of their names, and requests that are enough for a small version."""


def small_crossover(case: str):
    experiment = load_experiment("crossover")
    cases = {name: each for name, each in experiment.cases.items() if name.endswith(case) and "H200" not in name}
    assert len(cases) == 1
    return msgspec.structs.replace(reduced(experiment, count=CASES[case]), cases=cases)


def lead_of(findings: Findings, name: str, case: str) -> list[Cell]:
    cells = [each for each in findings.cells if each.column == name]
    return [each for each in cells if each.row.endswith(case) and "H200" not in each.row]


@pytest.mark.parametrize("case", CASES)
def test_a_fleet_leads_where_it_should(case):
    (least,) = lead_of(find(small_crossover(case)), LEAST, case)
    assert least.ours > 0


@pytest.mark.parametrize("case", CASES)
def test_the_lead_is_more_than_what_seeds_make_of_it(case):
    kept = load(RESULTS / "crossover.json").findings
    (lead,), (least,) = lead_of(kept, LEAD, case), lead_of(kept, LEAST, case)
    assert least.ours > 0
    assert lead.ours > 5 * lead.deviation


def test_switching_roles_shortens_answers_that_wait_for_few_decoders():
    experiment = load_experiment("table6")
    rows = {name: row for name, row in experiment.rows.items() if name.endswith("D of 1")}
    small = msgspec.structs.replace(reduced(experiment, count=40), rows=rows, relative=())
    found = {(each.variant, each.row, each.column): each.ours for each in find(small).cells}
    for variant in experiment.variants:
        assert found[variant, "on, D of 1", "switches"] > 0
        assert found[variant, "off, D of 1", "switches"] == 0
        on, off = (found[variant, f"{way}, D of 1", "mean latency"] for way in ("on", "off"))
        assert on < 0.6 * off


def test_a_result_is_drawn_the_same_each_time(tmp_path):
    curves = (Curve("panel", "old host", "system", (1.0, 2.0), (1.0, 0.5), (0.0, 0.1)),)
    made = Made("unknown", "none", {}, 0.0)
    result = Result("name", "title", "", "", Findings((), curves), made)
    (first,), (second,) = draw(result, tmp_path / "a"), draw(result, tmp_path / "b")
    assert first.name == "name-old-host.svg"
    assert first.read_bytes() == second.read_bytes()


def test_a_table_is_drawn_with_what_the_paper_has(tmp_path):
    (path,) = draw(load(RESULTS / "table8.json"), tmp_path)
    assert path.read_text().count("<svg")


def test_an_unknown_result_is_refused(capsys):
    assert main(["table99"]) == 2
    assert "table1" in capsys.readouterr().out


def test_results_are_of_the_experiments_that_are_there():
    for path in RESULTS.glob("*.json"):
        assert json.loads(path.read_bytes())["title"] == load_experiment(path.stem).title
