# SPDX-License-Identifier: Apache-2.0
"""The derived profiles that come with the package. Pure."""

from collections.abc import Mapping

from vllm_epd.planner.profile.derive.architectures import ARCHITECTURES
from vllm_epd.planner.profile.derive.cards import A100, CARDS
from vllm_epd.planner.profile.derive.roofline import derive
from vllm_epd.planner.profile.derive.software import EAGER, TODAY
from vllm_epd.planner.profile.profile import Profile
from vllm_epd.planner.profile.store import file_name

SERVED = (*((card, TODAY) for card in CARDS), (A100, EAGER))
"""On what, and how: all cards as one would serve today, and the paper's card as the paper did."""


def ready_profiles() -> Mapping[str, Profile]:
    """By the names of their files."""
    return {
        file_name(model.name, card.name + software.suffix): derive(model, card, software)
        for model in ARCHITECTURES
        for card, software in SERVED
    }
