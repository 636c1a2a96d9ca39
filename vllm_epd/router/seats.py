# SPDX-License-Identifier: Apache-2.0
"""A request's place at one instance that prefills or decodes, and when that ends. No I/O."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial
from types import TracebackType

from vllm_epd.router.capacity import Ask
from vllm_epd.router.instances import Instance


class Seat:
    """A place, from construction to `end`; also a context manager that ends it.

    Attributes:
        instance: where it is.
        ask: how much it takes.
        ended: it has been given back.
    """

    def __init__(self, instance: Instance, ask: Ask, freed: Callable[[], None]) -> None:
        self.instance = instance
        self.ask = ask
        self._freed = freed
        self.ended = False
        instance.begin(ask.work)
        instance.seated.take(ask)

    def end(self) -> None:
        """Give the place back; once, however often it is called."""
        if self.ended:
            return
        self.ended = True
        self.instance.seated.drop(self.ask)
        self.instance.end(self.ask.work)
        self._freed()

    def __enter__(self) -> "Seat":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.end()


class Counted(AbstractContextManager["Counted"]):
    """What instances are counted as busy with for a request, until `close` or the end of a `with` block."""

    def __init__(self) -> None:
        self._ends: list[Callable[[], None]] = []

    def work(self, instance: Instance, tokens: float) -> None:
        """Count a call that is still to be made."""
        instance.begin(tokens)
        self._ends.append(partial(instance.end, tokens))

    def seat(self, seat: Seat) -> None:
        """Count a place, which may end before."""
        self._ends.append(seat.end)

    def close(self) -> None:
        """Count nothing any more."""
        while self._ends:
            self._ends.pop()()

    def __exit__(self, *_: object) -> None:
        self.close()
