# SPDX-License-Identifier: Apache-2.0
"""Agents that are closed when their test ends."""

import pytest


@pytest.fixture
def make_party():
    pytest.importorskip("torch")
    from tests.unit.transfer.parties import Party

    parties = []

    def make(**changes):
        parties.append(Party(**changes))
        return parties[-1]

    yield make
    for party in parties:
        party.close()
