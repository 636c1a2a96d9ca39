# SPDX-License-Identifier: Apache-2.0
import msgspec
import pytest

from vllm_epd.planner.profile.store import load_profile


@pytest.fixture
def replaced():
    """A ready profile with other values in some of its fields."""

    def replace(name="minicpm-v-2.6@a100-80gb", **fields):
        return msgspec.structs.replace(load_profile(name), **fields)

    return replace
