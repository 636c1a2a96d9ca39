# SPDX-License-Identifier: Apache-2.0
"""What the stages of the running topologies cost at the moment."""

from collections.abc import Mapping
from pathlib import Path

from rich.console import Console

from vllm_epd.errors import ConfigError
from vllm_epd.planner.measure.command import Wanted, profile_command

WHOLE, APART = "EPD", "1E1P1D"
"""The topologies that a profile is taken of: one tells what steps take, the other what handing over takes."""

REPEATS = 3
"""Of each request: many profiles are taken, and what is compared is a mean over several."""


def profile_file(folder: Path, number: int, rate: float) -> Path:
    """Where the profile of a rate in a round lies."""
    return folder / f"profile-{number + 1}-{rate:g}.json"


def take_profile(model: str, urls: Mapping[str, str], out: Path, console: Console) -> None:
    """Write a profile of what stands at `urls`, by topology.

    Raises:
        ConfigError: a topology is not there, or it cannot be measured.
    """
    if missing := [each for each in (WHOLE, APART) if each not in urls]:
        raise ConfigError(f"a profile is taken of {WHOLE} and {APART}; without {missing[0]} give one with --profile")
    whole = out.with_suffix(".whole.json")
    out.parent.mkdir(parents=True, exist_ok=True)
    try:
        profile_command(Wanted(model, urls[WHOLE], whole, repeats=REPEATS), console)
        profile_command(Wanted(model, urls[APART], out, whole=whole, repeats=REPEATS), console)
    finally:
        whole.unlink(missing_ok=True)
