# SPDX-License-Identifier: Apache-2.0
"""The pool of embeddings of one instance: what requests hold, and what is kept in case it is asked for again. Pure."""

from collections import OrderedDict


class Pool:
    """Room for so many tokens.

    Attributes:
        capacity: tokens.
        held: of what requests hold.
        peak: the most that has been held.
    """

    __slots__ = ("_holders", "_kept", "_kept_tokens", "capacity", "held", "peak")

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.held = 0
        self.peak = 0
        self._holders: dict[object, tuple[int, int]] = {}
        self._kept: OrderedDict[object, int] = OrderedDict()
        self._kept_tokens = 0

    def has(self, name: object | None) -> bool:
        """Whether what has that name is there, or is being made."""
        return name is not None and (name in self._holders or name in self._kept)

    def missing(self, name: object | None, tokens: int) -> int:
        """Tokens by which holding it too would fill the pool."""
        return 0 if name is not None and name in self._holders else tokens

    def fits(self, tokens: int) -> bool:
        """Whether there is room for so much more."""
        return self.held + tokens <= self.capacity

    def take(self, name: object | None, tokens: int) -> None:
        """Hold it; what is kept for nobody makes way."""
        if name is not None:
            known, holders = self._holders.get(name, (tokens, 0))
            self._holders[name] = (known, holders + 1)
            if holders:
                return
            self._kept_tokens -= self._kept.pop(name, 0)
        self.held += tokens
        self.peak = max(self.peak, self.held)
        while self._kept and self.held + self._kept_tokens > self.capacity:
            self._kept_tokens -= self._kept.popitem(last=False)[1]

    def drop(self, name: object | None, tokens: int) -> None:
        """Hold it no longer; what has a name is kept as long as there is room."""
        if name is None:
            self.held -= tokens
            return
        known, holders = self._holders[name]
        if holders > 1:
            self._holders[name] = (known, holders - 1)
            return
        del self._holders[name]
        self.held -= known
        self._kept[name] = known
        self._kept_tokens += known
