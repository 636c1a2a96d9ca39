# SPDX-License-Identifier: Apache-2.0
"""Server-sent events as vLLM writes them: `data: <JSON>`, a blank line, `data: [DONE]` at the end. Pure."""

from collections.abc import Iterator

_END = b"\n\n"
_DATA = b"data: "
_DONE_DATA = b"[DONE]"
DONE = _DATA + _DONE_DATA + _END


class EventSplitter:
    """Cuts a stream of bytes where events end, so that a broken stream never ends within one.

    Bytes come out unchanged and as soon as their event is whole.
    """

    def __init__(self) -> None:
        self._rest = b""
        self._tail = b""

    @property
    def done(self) -> bool:
        """Whether the event that closes a stream has come out."""
        return self._tail.rstrip().endswith(_DATA + _DONE_DATA)

    def feed(self, chunk: bytes) -> bytes:
        """The events that are whole now; may be empty."""
        data = self._rest + chunk
        cut = data.rfind(_END) + len(_END) if _END in data else 0
        self._rest = data[cut:]
        if cut:
            self._tail = data[max(0, cut - len(DONE)) : cut]
        return data[:cut]

    def close(self) -> bytes:
        """What came after the last whole event."""
        rest, self._rest = self._rest, b""
        self._tail = rest or self._tail
        return rest


def event(data: bytes) -> bytes:
    """One event that carries `data`."""
    return _DATA + data + _END


def blocks(events: bytes) -> Iterator[bytes]:
    """Each of some whole events with its end; what is not whole comes last."""
    *whole, rest = events.split(_END)
    yield from (block + _END for block in whole)
    if rest:
        yield rest


def data_of(events: bytes) -> Iterator[bytes]:
    """What each of some whole events carries; comments and the closing event are left out."""
    for each in events.split(_END):
        for line in each.split(b"\n"):
            if line.startswith(_DATA) and line != _DATA + _DONE_DATA:
                yield line[len(_DATA) :]
