# SPDX-License-Identifier: Apache-2.0
"""Profiles as files: those of an operator, and the ready ones that come with the package."""

import re
from pathlib import Path

import msgspec

from vllm_epd.errors import ConfigError
from vllm_epd.planner.profile.profile import FORMAT, Profile

READY = Path(__file__).parents[1] / "profiles"
"""Folder of the ready profiles, each named `model@hardware.json`."""


class _Versioned(msgspec.Struct):
    """As much of a file as tells whether the rest can be read."""

    format: int


def known_profiles() -> tuple[str, ...]:
    """Names of the ready profiles."""
    return tuple(sorted(path.stem for path in READY.glob("*.json")))


def load_profile(name: str | Path) -> Profile:
    """Read a profile by the name of a ready one, such as `internvl2-8b@h100`, or by the path of its file.

    Raises:
        ConfigError: no such profile, a file of another format, or one that holds no profile.
    """
    path = READY / f"{name}.json" if str(name) in known_profiles() else Path(name)
    if not path.is_file():
        known = ", ".join(known_profiles())
        raise ConfigError(f"unknown profile {str(name)!r}: neither a file nor one of the ready ones ({known})")
    try:
        return _decode(path.read_bytes(), path)
    except (OSError, msgspec.DecodeError) as error:
        raise ConfigError(f"{path} holds no profile: {error}") from error


def save_profile(profile: Profile, path: Path) -> None:
    """Write a profile as JSON that people can read.

    Raises:
        ConfigError: the file cannot be written.
    """
    try:
        path.write_bytes(encode_profile(profile))
    except OSError as error:
        raise ConfigError(f"cannot write the profile {path}: {error}") from error


def encode_profile(profile: Profile) -> bytes:
    """The content of a profile's file."""
    return msgspec.json.format(msgspec.json.encode(profile), indent=2) + b"\n"


def file_name(model: str, hardware: str) -> str:
    """That of a profile, from the names of what it holds for: lower case, and nothing that a shell would read."""
    return "@".join(re.sub(r"[^a-z0-9.]+", "-", part.lower()).strip("-") for part in (model, hardware)) + ".json"


def _decode(content: bytes, path: Path) -> Profile:
    found = msgspec.json.decode(content, type=_Versioned).format
    if found != FORMAT:
        raise ConfigError(
            f"{path} is a profile of format {found}, but this version reads format {FORMAT}; make it anew"
        )
    return msgspec.json.decode(content, type=Profile)
