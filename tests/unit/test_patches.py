# SPDX-License-Identifier: Apache-2.0
"""The ledger of changes to vLLM is complete, and tells of nothing that is not there."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
LEDGER = ROOT / "patches/README.md"


def marked(marker: str) -> list[str]:
    """Ids behind `marker` in the package."""
    files = sorted((ROOT / "vllm_epd").rglob("*.py"))
    return [found for path in files for found in re.findall(rf"### PATCH {marker}(.*)", path.read_text())]


def rows() -> list[list[str]]:
    """The cells of each row of the ledger's table."""
    lines = [line for line in LEDGER.read_text().splitlines() if line.startswith("| ")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[1:]]


def test_every_change_is_in_the_ledger_and_the_other_way_round() -> None:
    assert sorted(name.strip() for name in marked("START")) == sorted(row[0] for row in rows())


def test_every_marked_change_ends() -> None:
    assert len(marked("START")) == len(marked("END"))


def test_every_row_is_filled_and_its_test_exists() -> None:
    for row in rows():
        assert len(row) == 7, row
        assert all(row), row
        assert (ROOT / row[5].strip("`")).exists(), row[5]
