# SPDX-License-Identifier: Apache-2.0
"""From options to profiles, workloads, targets and fleets."""

import argparse
from collections.abc import Callable, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import msgspec

from vllm_epd.errors import ConfigError
from vllm_epd.planner.fleet import Fleet, Limits
from vllm_epd.planner.profile.profile import Profile
from vllm_epd.planner.search.traffic import resized
from vllm_epd.planner.workload.generate import generate
from vllm_epd.planner.workload.requests import Request
from vllm_epd.planner.workload.spec import Trace, WorkloadSpec, load_workload, read_workload
from vllm_epd.topology import Topology
from vllm_epd.types import Role

COMMAND_LINE = "command line"
YAML = (".yaml", ".yml")
SHAPES = {"images": "--images", "image_size": "--image-size", "text_tokens": "--text-tokens"}
SHAPES |= {"output_tokens": "--output-tokens"}
TURNS = 4
"""A trace begins at another quarter for each seed."""
TIER = "cuda_ipc"


def workload(options: argparse.Namespace, rate: float | None) -> WorkloadSpec:
    """The workload that is described by a file or by options, at that rate if one is given.

    Raises:
        ConfigError: neither describes one, or both do.
    """
    shapes = [flag for name, flag in SHAPES.items() if getattr(options, name) is not None]
    if options.workload is None:
        spec = read_workload(_from_options(options, rate), COMMAND_LINE)
    elif shapes:
        raise ConfigError(f"{shapes[0]} says what is in a request, and {options.workload} does so already")
    else:
        spec = _from_file(options.workload)
        spec = spec if rate is None else spec.at_rate(rate)
    return _replaced(spec, options)


def requests_of(spec: WorkloadSpec) -> Callable[[int, int], Sequence[Request]]:
    """As many requests as are asked for, by seed; of a trace, again and again, from another point of it on."""
    if not isinstance(spec.arrivals, Trace):
        return lambda seed, count: generate(msgspec.structs.replace(spec, requests=count, duration_s=None), seed)
    known = generate(spec)
    return lambda seed, count: resized(known, count, seed * len(known) // TURNS)


def base_fleet(options: argparse.Namespace, profile: Profile) -> Fleet:
    """A fleet without a topology, with what is given for all fleets.

    Raises:
        ConfigError: what is given cannot be.
    """
    share = options.memory_share
    if not 0 < share <= 1:
        raise ConfigError(f"--memory-share: expected a part above 0 and at most 1, got {share}")
    tier = options.tier or (TIER if TIER in profile.links else next(iter(profile.links), TIER))
    if tier not in profile.links:
        raise ConfigError(f"--tier {tier}: the profile of {profile.model} has the links {', '.join(profile.links)}")
    return Fleet(Topology(()), tier=tier, memory_share=share)


def limits(options: argparse.Namespace) -> Limits:
    """How much instances do at once.

    Raises:
        ConfigError: less than one.
    """
    given = {each.name: getattr(options, each.name) for each in fields(Limits)}
    for name, value in given.items():
        if value is not None and value < 1:
            raise ConfigError(f"--{name.replace('_', '-')}: expected at least 1, got {value}")
    return Limits(**{name: value for name, value in given.items() if value is not None})


def by_role(options: argparse.Namespace, kind: str) -> dict[Role, str]:
    """Policies or orders that are given for stages."""
    given = {role: getattr(options, f"{role}_{kind}") for role in Role}
    return {role: value for role, value in given.items() if value is not None}


def irp_degree(text: str | None) -> int | None:
    """Read `auto` or a number.

    Raises:
        ConfigError: something else.
    """
    if text in (None, "auto"):
        return None
    if not str(text).isdecimal() or int(str(text)) < 1:
        raise ConfigError(f"--irp-degree: expected auto or an integer of at least 1, got {text!r}")
    return int(str(text))


def _from_file(file: Path) -> WorkloadSpec:
    if file.suffix in YAML:
        return load_workload(file)
    return read_workload({"arrivals": {"kind": "trace", "file": file.name}}, str(file), file.parent)


def _from_options(options: argparse.Namespace, rate: float | None) -> dict[str, Any]:
    if rate is None:
        raise ConfigError("there is no workload; give --workload FILE, or --rate and what is in a request")
    kind = {name: getattr(options, name) for name in ("images", "text_tokens", "output_tokens")}
    kind["image_sizes"] = None if options.image_size is None else [options.image_size]
    known = {name: value for name, value in kind.items() if value is not None}
    return {"arrivals": {"kind": "poisson", "rate": rate}, "classes": [known]}


def _replaced(spec: WorkloadSpec, options: argparse.Namespace) -> WorkloadSpec:
    given: dict[str, Any] = {}
    if options.requests is not None:
        given |= {"requests": options.requests, "duration_s": None}
    if options.seed is not None:
        given["seed"] = options.seed
    try:
        return msgspec.structs.replace(spec, **given)
    except ValueError as error:
        raise ConfigError(f"{COMMAND_LINE}: {error}") from error
