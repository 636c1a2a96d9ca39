# SPDX-License-Identifier: Apache-2.0
"""Until when a client wants its answer: a soft target for the first token, a hard limit for the whole. Pure."""

import math
from collections.abc import Mapping

from msgspec import Struct

from vllm_epd.errors import BadRequestError
from vllm_epd.router.failures import TooLateError

#: How soon the first token should come, in milliseconds. It orders requests; nothing ends when it is missed.
SLO_HEADER = "X-Request-TTFT-SLO-Ms"
#: How long the whole answer may take, in milliseconds; what takes longer ends with an error.
TIMEOUT_HEADER = "X-Request-Timeout-Ms"


class Deadline(Struct, frozen=True):
    """The times of one request, in seconds of the router's clock.

    Attributes:
        arrived: when it came.
        due: when its first token should be there; None if nobody has said.
        limit: when its answer must be complete; None if there is no limit.
    """

    arrived: float = 0.0
    due: float | None = None
    limit: float | None = None

    @property
    def target_s(self) -> float | None:
        """How soon after the arrival the first token should be there."""
        return None if self.due is None else self.due - self.arrived

    def left_s(self, now: float, most: float) -> float:
        """How long a call may take that may take `most` otherwise.

        Raises:
            TooLateError: no time is left.
        """
        if self.limit is None:
            return most
        if (left := self.limit - now) <= 0:
            raise TooLateError("the time limit of the request is over", retry_after_s=1)
        return min(most, left)


def read_deadline(headers: Mapping[str, str], now: float, slo_s: float | None) -> Deadline:
    """What the headers of a request that has just come ask for; `slo_s` is what is meant without a word.

    Raises:
        BadRequestError: a header that is no number of milliseconds.
    """
    slo, limit = _seconds(headers, SLO_HEADER), _seconds(headers, TIMEOUT_HEADER)
    slo = slo_s if slo is None else slo
    return Deadline(now, None if slo is None else now + slo, None if limit is None else now + limit)


def _seconds(headers: Mapping[str, str], name: str) -> float | None:
    text = headers.get(name)
    if text is None:
        return None
    try:
        milliseconds = float(text)
    except ValueError:
        milliseconds = math.nan
    if not (math.isfinite(milliseconds) and milliseconds > 0):
        raise BadRequestError(f"{name} must be a positive number of milliseconds, got {text!r}", param=name)
    return milliseconds / 1000
