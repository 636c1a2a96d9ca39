# SPDX-License-Identifier: Apache-2.0
"""How many instances of which roles: `2E1P1D`, `1E1PD`, `EPD`."""

import re
from dataclasses import dataclass
from typing import Self

from vllm_epd.errors import ConfigError
from vllm_epd.types import LETTERS, Role, RoleSet

EXAMPLES = "examples: 1E1P1D, 2E1PD, 2EP1D, EPD"


@dataclass(frozen=True, slots=True)
class Group:
    """Equal instances."""

    roles: RoleSet
    count: int


@dataclass(frozen=True, slots=True)
class Topology:
    """Groups of instances that together serve every request."""

    groups: tuple[Group, ...]

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read groups of an optional count and a run of the letters E, P and D, each at most once.

        A missing count is 1, so `EPD` is one instance that does everything, and `1E1P1D` three.

        Raises:
            ConfigError: another text, or a topology that no request can pass through.
        """
        groups: list[Group] = []
        position = 0
        while position < len(text):
            found = re.compile(r"(\d*)([A-Za-z]*)").match(text, position)
            assert found is not None
            groups.append(_group(text, position, found[1], found[2]))
            if groups[-1].roles in [group.roles for group in groups[:-1]]:
                raise _error(text, position, f"{groups[-1].roles.letters} comes twice; add up the counts")
            position = found.end()
        topology = cls(tuple(groups))
        if missing := [role for role in (Role.PREFILL, Role.DECODE) if role not in topology.roles]:
            names = " and no ".join(role.value for role in missing)
            raise ConfigError(f"topology {text!r} can serve nothing: it has no {names} instance; {EXAMPLES}")
        return topology

    @property
    def roles(self) -> frozenset[Role]:
        """The stages that some instance serves."""
        return frozenset(role for group in self.groups for role in group.roles.roles)

    @property
    def size(self) -> int:
        """How many instances there are."""
        return sum(group.count for group in self.groups)

    @property
    def text_only(self) -> bool:
        """Whether no instance takes images, video or audio."""
        return Role.ENCODE not in self.roles

    def __str__(self) -> str:
        return "".join(f"{group.count}{group.roles.letters}" for group in self.groups)


def _group(text: str, position: int, count: str, letters: str) -> Group:
    start = position + len(count)
    if not letters:
        found = f"found {text[start]!r}" if start < len(text) else "the text ends"
        raise _error(text, start, f"expected a letter out of E, P and D, {found}")
    if count and int(count) == 0:
        raise _error(text, position, "a count of 0; leave the group out")
    for index, letter in enumerate(letters):
        if letter not in LETTERS:
            raise _error(text, start + index, f"{letter!r} is none of the letters E, P and D")
        if letter in letters[:index]:
            raise _error(text, start + index, f"{letter} comes twice in {letters}; put a count before each group")
    return Group(RoleSet.from_letters(letters), int(count or 1))


def _error(text: str, position: int, why: str) -> ConfigError:
    return ConfigError(f"topology {text!r}, position {position + 1}: {why}; {EXAMPLES}")
