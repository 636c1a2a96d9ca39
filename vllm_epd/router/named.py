# SPDX-License-Identifier: Apache-2.0
"""Deciders that are chosen by name. Pure."""

from collections.abc import Mapping
from typing import TypeVar

from vllm_epd.errors import ConfigError

Decider = TypeVar("Decider")


def named(kind: str, known: Mapping[str, Decider], name: str) -> Decider:
    """The decider of that name.

    Raises:
        ConfigError: there is none; the message names the `kind` and lists those that there are.
    """
    try:
        return known[name]
    except KeyError:
        raise ConfigError(f"unknown {kind} {name!r}; known: {', '.join(sorted(known))}") from None
