# SPDX-License-Identifier: Apache-2.0
"""What the stages of the running topologies cost at the moment."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from statistics import fmean
from typing import Any

import msgspec
from rich.console import Console

from vllm_epd.errors import ConfigError
from vllm_epd.planner.measure.command import Wanted, profile_command
from vllm_epd.planner.profile.profile import Profile
from vllm_epd.planner.profile.store import load_profile

WHOLE, APART = "EPD", "1E1P1D"
"""The topologies that a profile is taken of: one tells what steps take, the other what handing over takes."""

REPEATS = 1
"""Of each request: the mean of the profiles of a round counts, which are taken at several times."""


def profile_file(folder: Path, number: int, rate: float) -> Path:
    """Where the profile of a rate in a round lies."""
    return folder / f"profile-{number + 1}-{rate:g}.json"


def round_profile(folder: Path, number: int, rates: Iterable[float]) -> Profile:
    """The mean of all profiles of a round: one alone is noisy, since processes count their time in steps of 10 ms.

    Raises:
        ConfigError: one is missing, or cannot be used.
    """
    found = [msgspec.to_builtins(load_profile(str(profile_file(folder, number, rate)))) for rate in rates]
    return msgspec.convert(_mean(found), Profile)


def _mean(values: list[Any]) -> Any:
    first = values[0]
    if isinstance(first, dict):
        return {name: _mean([each[name] for each in values]) for name in first}
    return fmean(values) if isinstance(first, float) else first


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
