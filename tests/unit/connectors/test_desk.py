# SPDX-License-Identifier: Apache-2.0
"""How long a scheduler waits for its agents."""

import pytest

from tests.unit.connectors.links import FakeLink
from vllm_epd.connectors.desk import Desk
from vllm_epd.transfer import wire


@pytest.fixture
def reserved(desk: Desk) -> list[int]:
    """Landings of what there is room for; 1 and 2 are asked for."""
    found: list[int] = []
    for number in (1, 2):
        wanted = wire.Wanted(number, f"k{number}", f"l{number}", 8)
        desk.reserve([wanted], lambda report: found.append(report.landing))
    return found


def test_what_is_said_within_a_moment_is_waited_for_once(desk: Desk, link: FakeLink, reserved: list[int]):
    link.late = [wire.Reserved(1, [], [8]), wire.Reserved(2, [], [8])]
    assert desk.collect_for("a", lambda: len(reserved) == 2 or None)
    assert link.waits == [0, 1, 1]


def test_nobody_waits_where_nothing_is_said(desk: Desk, link: FakeLink):
    assert desk.collect_for("a", lambda: None) is None
    assert desk.collect_for("a", lambda: None) is None
    assert link.waits == [0, 1, 0]
    desk.leave("a")
    assert desk.collect_for("a", lambda: None) is None
    assert link.waits == [0, 1, 0, 0, 1]


def test_what_is_known_already_is_not_waited_for(desk: Desk, link: FakeLink):
    assert desk.collect_for("a", lambda: 0) == 0
    assert link.waits == [0]
