# SPDX-License-Identifier: Apache-2.0
"""Media inside a request body, kept in the pieces in which it came: never joined, parsed or copied. Pure.

Nearly all of a large body is base64 inside one JSON string. Each such string is cut out while the body arrives, and
a short mark takes its place; what is left is parsed and encoded like any other JSON, and where a mark comes out the
pieces go out again. Only what is the same byte for byte inside and outside of JSON is cut: a string with a backslash
stays where it is.
"""

import os
import re
from collections.abc import Sequence

from msgspec import Struct

#: Shorter strings are no trouble to a parser.
SHORTEST = 16 * 2**10

#: What long data follows: the head of a `data:` URL, or the key of audio.
_OPENING = re.compile(rb';base64,|"data"\s{0,4}:\s{0,4}"')
_OPENING_LENGTH = 16
_MARK_BYTES = 16
_NUMBER_DIGITS = 8

#: Data that was cut out is a view of what arrived.
Piece = bytes | memoryview
Pieces = Sequence[Piece]


class Inline(Struct, frozen=True):
    """What was cut out of one body.

    Attributes:
        mark: stands, with a number after it, for what was cut out; no client can guess it.
        data: the pieces of each string, by number.
    """

    mark: str = ""
    data: tuple[Pieces, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.data)

    def held(self, text: str) -> Pieces | None:
        """The data whose mark ends `text`; None if there is no mark."""
        _, mark, number = text.rpartition(self.mark) if self.mark else ("", "", "")
        return self.data[int(number, 16)] if mark else None

    def marked(self, number: int) -> bytes:
        """What stands for one of the strings."""
        return f"{self.mark}{number:0{_NUMBER_DIGITS}x}".encode()

    def opened(self, text: str, length: int) -> tuple[str, int]:
        """The beginning of a text with the data in the place of its mark, and how long all of that is."""
        pieces = self.held(text)
        if pieces is None:
            return text[:length], len(text)
        before = text[: text.rindex(self.mark)]
        head = b""
        for piece in pieces:
            head += piece[: length - len(head)]
            if len(head) >= length:
                break
        return before + head.decode("latin-1"), len(before) + sum(map(len, pieces))

    def filled(self, written: bytes) -> Pieces:
        """JSON that may have marks in it, in pieces and with the data in their place."""
        if not self.data:
            return (written,)
        before, *others = written.split(self.mark.encode())
        pieces: list[Piece] = [before]
        for each in others:
            pieces += self.data[int(each[:_NUMBER_DIGITS], 16)]
            pieces.append(each[_NUMBER_DIGITS:])
        return pieces


NOTHING = Inline()


class Cutter:
    """Takes a body as it comes, and cuts out what is long."""

    def __init__(self) -> None:
        self._mark = ""
        self._text = bytearray()
        self._searched = 0
        self._open: list[Piece] | None = None
        self._cut: list[Pieces] = []

    def feed(self, chunk: bytes) -> None:
        """Take the next bytes."""
        at = 0
        while at < len(chunk):
            at = self._text_until(chunk, at) if self._open is None else self._data_until(chunk, at, self._open)

    def close(self) -> tuple[bytes, Inline]:
        """What is left of the body, and what was cut out of it."""
        if self._open is not None:
            self._put_back(self._open)
        return bytes(self._text), Inline(self._mark, tuple(self._cut)) if self._cut else NOTHING

    def _text_until(self, chunk: bytes, at: int) -> int:
        """Keep the text up to where data may begin; return where that is."""
        end = self._opening(chunk, at)
        self._text += chunk[at:end]
        if end is None:
            self._searched = max(self._searched, len(self._text) - _OPENING_LENGTH)
            return len(chunk)
        self._open = []
        return end

    def _opening(self, chunk: bytes, at: int) -> int | None:
        """Where the next opening ends, which may have begun in an earlier chunk."""
        if seam := bytes(self._text[self._searched :]):
            found = _OPENING.search(seam + chunk[at : at + _OPENING_LENGTH])
            if found is not None:
                return at + found.end() - len(seam)
        found = _OPENING.search(chunk, at)
        return None if found is None else found.end()

    def _data_until(self, chunk: bytes, at: int, pieces: list[Piece]) -> int:
        """Keep the data aside up to its end; return where that is."""
        closing = chunk.find(b'"', at)
        end = len(chunk) if closing < 0 else closing
        pieces.append(memoryview(chunk)[at:end])
        if chunk.find(b"\\", at, end) >= 0:
            self._put_back(pieces)
        elif closing >= 0:
            self._cut_out(pieces)
        return end

    def _cut_out(self, pieces: Pieces) -> None:
        if sum(map(len, pieces)) < SHORTEST:
            self._put_back(pieces)
            return
        self._mark = self._mark or os.urandom(_MARK_BYTES).hex()
        self._text += f"{self._mark}{len(self._cut):0{_NUMBER_DIGITS}x}".encode()
        self._cut.append(pieces)
        self._end()

    def _put_back(self, pieces: Pieces) -> None:
        self._text += b"".join(pieces)
        self._end()

    def _end(self) -> None:
        self._searched = len(self._text)
        self._open = None
