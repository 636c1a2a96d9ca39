# SPDX-License-Identifier: Apache-2.0
"""Which texts are topologies, and what is said of those that are none."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vllm_epd.errors import ConfigError
from vllm_epd.topology import Group, Topology
from vllm_epd.types import RoleSet

LETTERS = ["E", "P", "D", "EP", "PD", "ED", "EPD"]


@pytest.mark.parametrize(
    ("text", "groups"),
    [
        ("2E1P1D", [("E", 2), ("P", 1), ("D", 1)]),
        ("1E1PD", [("E", 1), ("PD", 1)]),
        ("2EPD", [("EPD", 2)]),
        ("EPD", [("EPD", 1)]),
        ("2EP1D", [("EP", 2), ("D", 1)]),
        ("1EP12D", [("EP", 1), ("D", 12)]),
        ("E1P1D", [("E", 1), ("P", 1), ("D", 1)]),
        ("1P1D", [("P", 1), ("D", 1)]),
        ("1DP", [("PD", 1)]),
    ],
)
def test_text_is_read(text, groups):
    expected = tuple(Group(RoleSet.from_letters(letters), count) for letters, count in groups)
    assert Topology.parse(text).groups == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("1E2X1D", "'1E2X1D', position 4: 'X' is none of the letters"),
        ("1e1p1d", "'1e1p1d', position 2: 'e' is none of the letters"),
        ("1E1P2", "position 6: expected a letter out of E, P and D, the text ends"),
        ("1E-1PD", "position 3: expected a letter out of E, P and D, found '-'"),
        ("1E 1PD", "position 3: expected a letter out of E, P and D, found ' '"),
        ("1E0P1D", "position 3: a count of 0"),
        ("EPDE", "position 4: E comes twice in EPDE"),
        ("1PD1E2PD", "position 6: PD comes twice; add up the counts"),
        ("1E", "can serve nothing: it has no prefill and no decode instance"),
        ("1EP", "can serve nothing: it has no decode instance"),
        ("1E1D", "can serve nothing: it has no prefill instance"),
        ("", "can serve nothing"),
    ],
)
def test_other_text_is_refused_with_place_and_examples(text, message):
    with pytest.raises(ConfigError) as refused:
        Topology.parse(text)
    assert message in str(refused.value)
    assert "examples: 1E1P1D" in str(refused.value)


def test_topology_without_encoder_is_text_only():
    assert Topology.parse("1P1D").text_only
    assert not Topology.parse("1EP1D").text_only


@given(st.dictionaries(st.sampled_from(LETTERS), st.integers(1, 99), min_size=1))
def test_what_is_written_is_read_again(groups):
    topology = Topology(tuple(Group(RoleSet.from_letters(each), count) for each, count in groups.items()))
    if {"P", "D"} <= set("".join(groups)):
        assert Topology.parse(str(topology)) == topology
        assert topology.size == sum(groups.values())
    else:
        with pytest.raises(ConfigError, match="can serve nothing"):
            Topology.parse(str(topology))
