# SPDX-License-Identifier: Apache-2.0
"""What the time of one request goes to. Pure; the clock is given."""

import time
from collections import defaultdict
from collections.abc import Callable, Mapping
from enum import StrEnum
from functools import partial

from vllm_epd.types import Role


class Span(StrEnum):
    """A part of the time of a request; waiting for a stage is told apart from being served by it."""

    RECEIVE = "receive"
    ROUTE = "route"
    ENCODE_QUEUE = "encode_queue"
    ENCODE = "encode"
    PREFILL_QUEUE = "prefill_queue"
    PREFILL = "prefill"
    DECODE_QUEUE = "decode_queue"
    DECODE = "decode"
    BACKOFF = "backoff"


_SPANS = tuple(Span)

_UNTIL_FIRST_TOKEN = ';desc="until the first token"'

#: Where the time goes that a request waits for a stage.
QUEUE: Mapping[Role, Span] = {role: Span(f"{role.value}_queue") for role in Role}
#: Where it goes that a stage serves it.
STAGE: Mapping[Role, Span] = {role: Span(role.value) for role in Role}


class Timeline:
    """The times of one request.

    A span is entered as often as there are tries, and by several branches at once: its time is that in which any of
    them was in it. So spans of one branch add up to the time of the request, and those of several may overlap.

    Attributes:
        arrived: when the request came, by the clock.
        first_token: when its answer began for the client; None before that, and for answers that come whole.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.arrived = clock()
        self.first_token: float | None = None
        self._clock = clock
        self._spent: defaultdict[Span, _Spent] = defaultdict(partial(_Spent, clock))

    def during(self, span: Span, *, within: Span | None = None) -> "_Spent | _Within":
        """Count a `with` block as time in `span`; not as time in the one around it, if that is named."""
        spent = self._spent[span]
        return spent if within is None else _Within(spent, self._spent[within])

    def begin_answer(self) -> None:
        """The client gets the first of its answer now; once, however often it is called."""
        if self.first_token is None:
            self.first_token = self._clock()

    @property
    def ttft_s(self) -> float | None:
        """How long the client waited for its answer to begin."""
        return None if self.first_token is None else self.first_token - self.arrived

    def total_s(self) -> float:
        """How long the request has taken so far."""
        return self._clock() - self.arrived

    def seconds(self) -> dict[Span, float]:
        """The time in each span that was entered, up to now for those that are not over."""
        now, spent = self._clock(), self._spent
        return {span: spent[span].until(now) for span in _SPANS if span in spent}

    def is_open(self, span: Span) -> bool:
        """Whether the request is in `span`."""
        return span in self._spent and self._spent[span].open > 0


class _Spent:
    """The time in one span; a `with` block of it is time in it.

    Attributes:
        open: how many are in it now.
    """

    __slots__ = ("_clock", "_seconds", "_since", "open")

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._seconds = self._since = 0.0
        self.open = 0

    def __enter__(self) -> None:
        if not self.open:
            self._since = self._clock()
        self.open += 1

    def __exit__(self, *_: object) -> None:
        self.open -= 1
        if not self.open:
            self._seconds += self._clock() - self._since

    def until(self, now: float) -> float:
        """All of the time, up to now where it is not over."""
        return self._seconds + now - self._since if self.open else self._seconds


class _Within:
    """Time in one span, and not in the one around it."""

    __slots__ = ("_around", "_spent")

    def __init__(self, spent: _Spent, around: _Spent) -> None:
        self._spent = spent
        self._around = around

    def __enter__(self) -> None:
        self._around.__exit__()
        self._spent.__enter__()

    def __exit__(self, *_: object) -> None:
        self._spent.__exit__()
        self._around.__enter__()


def server_timing(timeline: Timeline) -> str:
    """The value of a `Server-Timing` header, in milliseconds, with what is known now.

    The header of a stream goes out with its first token, which is all that decode has done by then.
    """
    begun = Span.DECODE if timeline.is_open(Span.DECODE) else None
    metrics = [
        f"{span};dur={1000 * seconds:.1f}{_UNTIL_FIRST_TOKEN if span is begun else ''}"
        for span, seconds in timeline.seconds().items()
    ]
    return ", ".join((*metrics, f"total;dur={1000 * timeline.total_s():.1f}"))
