# SPDX-License-Identifier: Apache-2.0
"""What the user sees while a topology starts: a live table on a terminal, a line for each change elsewhere."""

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.live import Live
from rich.table import Table


class State(str, Enum):
    """How far a process has come."""

    WAITING = "waiting for its turn"
    STARTING = "starting"
    REGISTERING = "registering"
    READY = "ready"
    FAILED = "failed"

    def __str__(self) -> str:
        return self.value

    @property
    def final(self) -> bool:
        """Whether the clock of its row stops."""
        return self in (State.READY, State.FAILED)


COLOURS = {State.READY: "green", State.FAILED: "red"}


@dataclass(slots=True)
class Row:
    """One process of the table."""

    role: str
    state: State = State.WAITING
    started: float | None = None
    ended: float | None = None

    def seconds(self, now: float) -> float:
        """Since its start, until it was ready or failed."""
        return 0.0 if self.started is None else (self.ended or now) - self.started


class Progress:
    """The states of all processes; shown as long as its context is open."""

    def __init__(self, console: Console, clock: Callable[[], float], roles: dict[str, str]) -> None:
        self._console = console
        self._clock = clock
        self._rows = {name: Row(role) for name, role in roles.items()}
        self._live = (
            Live(console=console, get_renderable=self.table, refresh_per_second=4) if console.is_terminal else None
        )

    def __enter__(self) -> Self:
        if self._live:
            self._live.start(refresh=True)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._live:
            self._live.stop()

    def set(self, name: str, state: State) -> None:
        """Note how far a process has come."""
        row, now = self._rows[name], self._clock()
        row.state = state
        if state is State.STARTING:
            row.started = now
        if state.final:
            row.ended = now
        # Who reports a failure says more than its name.
        if not self._live and state is not State.FAILED:
            after = f" after {row.seconds(now):.0f} s" if row.seconds(now) else ""
            self._console.print(f"{name} ({row.role}): {state}{after}", highlight=False, soft_wrap=True)

    def table(self) -> Table:
        """All processes, one a row."""
        table = Table("instance", "role", "state", "seconds", box=None)
        table.columns[-1].justify = "right"
        now = self._clock()
        for name, row in self._rows.items():
            seconds = "" if row.started is None else f"{row.seconds(now):.0f}"
            table.add_row(name, row.role, f"[{COLOURS.get(row.state, 'default')}]{row.state}[/]", seconds)
        return table
