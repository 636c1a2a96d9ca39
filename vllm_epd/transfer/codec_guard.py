# SPDX-License-Identifier: Apache-2.0
"""Whether a codec may be used for this model's embeddings. Pure."""

from enum import Enum
from math import isnan

TRIAL_ITEMS = 8
MOST_ERROR = 0.05
"""Relative error of a row that a codec may make: fp8 makes about 0.026 whatever the row, int8 about 0.009 on one
without outliers."""


class CodecState(Enum):
    """How far the guard has come."""

    OFF = "off"
    """No codec is asked for."""
    TRIAL = "trial"
    """The codec is measured, and items go as they are."""
    ACTIVE = "active"
    """Items are encoded."""
    REFUSED = "refused"
    """The codec is too far off, and items go as they are until the instance ends."""


class CodecGuard:
    """Judges a codec by the first items after start, none of which is sent encoded if it can go as it is.

    Each item goes in the form for which its room was reserved. As long as the codec is on trial that is the larger
    form where the pool is large enough for it, and the verdict only changes what is reserved from then on. So no
    request that is admitted already fails for want of room when the codec is refused. None gets an embedding that
    nobody has vouched for: what goes encoded before the verdict goes only if it is within the bound itself.

    Attributes:
        state: what holds now; of `TRIAL` comes `ACTIVE` or `REFUSED`, and neither changes again.
        worst: largest error seen so far.
        bound: largest error that is let pass.
    """

    def __init__(self, *, enabled: bool, items: int = TRIAL_ITEMS, bound: float = MOST_ERROR) -> None:
        """Measure `items` items, if a codec is asked for at all."""
        self.state = CodecState.TRIAL if enabled else CodecState.OFF
        self.worst = 0.0
        self.bound = bound
        self._left = items

    def observe(self, error: float) -> None:
        """Take in the error of one item: of its worst row, relative in the Euclidean norm.

        NaN comes from an item that is not finite, which says nothing about the codec.
        """
        if self.state is not CodecState.TRIAL or isnan(error):
            return
        self.worst = max(self.worst, error)
        self._left -= 1
        if self.worst > self.bound:
            self.state = CodecState.REFUSED
        elif self._left <= 0:
            self.state = CodecState.ACTIVE
