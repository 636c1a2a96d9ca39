# SPDX-License-Identifier: Apache-2.0
"""What a variant is: one way for the bytes of one process to get to another one."""

from contextlib import AbstractContextManager
from typing import Protocol


class Source(Protocol):
    """The side that has the bytes.

    Attributes:
        description: what the reader needs.
    """

    description: bytes

    def progress(self) -> None:
        """Called every half millisecond."""


class Reader(Protocol):
    """The side that wants them."""

    def read(self, nbytes: int, *, check: bool) -> float:
        """Read the next piece of `nbytes`; its seconds, without those of comparing the bytes."""


class Variant(Protocol):
    """A way of reading; pickled into the two processes that open its sides."""

    name: str

    def missing(self) -> str:
        """What this machine lacks for it; empty where that is nothing."""

    def open_source(self) -> AbstractContextManager[Source]:
        """In the process that has the bytes."""

    def open_reader(self, description: bytes) -> AbstractContextManager[Reader]:
        """In the process that wants them."""
