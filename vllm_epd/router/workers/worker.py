# SPDX-License-Identifier: Apache-2.0
"""What one process of a router knows of itself and the others."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Worker:
    """One of several processes that serve the same port.

    Attributes:
        number: from 0 on; a process that replaces another one has its number.
        count: how many there are.
        folder: where each listens for the others, open to this user alone.
        run: names this start of the router.
    """

    number: int
    count: int
    folder: Path
    run: str

    @property
    def socket(self) -> Path:
        """Where this one listens for the others."""
        return self.socket_of(self.number)

    @property
    def siblings(self) -> tuple[int, ...]:
        """The numbers of the others."""
        return tuple(number for number in range(self.count) if number != self.number)

    def socket_of(self, number: int) -> Path:
        """Where the worker of that number listens for the others."""
        return self.folder / f"{number}.sock"
