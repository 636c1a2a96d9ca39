# SPDX-License-Identifier: Apache-2.0
"""A scheduler's desk, and the agents behind it as the test plays them."""

import pytest

from tests.unit.connectors.links import FakeLink
from vllm_epd.connectors.desk import Desk


@pytest.fixture
def link() -> FakeLink:
    return FakeLink()


@pytest.fixture
def desk(link: FakeLink) -> Desk:
    return Desk(link)  # type: ignore[arg-type]
