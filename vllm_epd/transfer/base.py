# SPDX-License-Identifier: Apache-2.0
"""The seam between moving bytes and everything else.

A transport moves bytes between one registered region here and one there, one-sided: the reader does all the work. It
knows nothing of keys, leases or vLLM. Objects of this module stay in their process; what crosses is the `bytes` of
`describe()`.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar

from vllm_epd.errors import TransferError
from vllm_epd.transfer.pool import Span
from vllm_epd.transfer.region import Region


class Read(ABC):
    """A read on its way."""

    works_in_poll: ClassVar[bool] = False
    """Whether `poll` itself moves the bytes, so that there is nothing to wait for between two calls."""

    @abstractmethod
    def poll(self) -> bool:
        """Make progress; True once all bytes have landed. Returns within about a millisecond. Not after `close`.

        Raises:
            TransferError: the read failed; the landing bytes are undefined.
        """

    @abstractmethod
    def close(self) -> None:
        """Let go of the read's resources, completed or not; a second call does nothing.

        Nothing lands any more once it returns.
        """


class Peer(ABC):
    """A connected remote region. `close` forgets it; reads in flight must be over."""

    @abstractmethod
    def close(self) -> None:
        """Forget the remote region; a second call does nothing."""


class Transport(ABC):
    """Reads from remote regions into the one region registered here.

    Used from one thread. All methods but `close` may raise TransferError; a transport whose construction or `register`
    raises cannot be used here, and the message says why. Before `register` and after `close` nothing else can be done.
    """

    name: ClassVar[str]

    @abstractmethod
    def register(self, region: Region) -> None:
        """Make `region` readable by peers and the target of reads; once."""

    @abstractmethod
    def describe(self) -> bytes:
        """What a peer needs to read from the registered region."""

    @abstractmethod
    def connect(self, description: bytes) -> Peer:
        """Connect to the region behind another transport's `describe()`.

        Raises:
            PeerError: there is no way to it from here; another transport may have one. A transport that cannot tell
                lets the first read fail.
        """

    @abstractmethod
    def read(self, peer: Peer, remote: Sequence[Span], local: Sequence[Span]) -> Read:
        """Start to copy the bytes of `remote` into `local`, both in order and of the same total length.

        Raises:
            TransferError: a span outside its region, different lengths, a closed peer or one of another transport's.
        """

    def progress(self) -> None:  # noqa: B027  one-sided all the way: most have nothing to do
        """Serve peers that read from here; called often while one may. Cheap when there is nothing to do."""

    @abstractmethod
    def close(self) -> None:
        """Deregister and stop; a second call does nothing. The region stays the caller's."""


def pair_spans(remote: Sequence[Span], local: Sequence[Span]) -> list[tuple[Span, Span]]:
    """Cut two lists of spans of the same total length into pairs of equal length.

    Raises:
        TransferError: the total lengths differ.
    """
    if len(remote) == len(local) == 1 and remote[0].length == local[0].length:
        return [(remote[0], local[0])]
    if sum(span.length for span in remote) != sum(span.length for span in local):
        raise TransferError("remote and local spans differ in total length")
    pairs: list[tuple[Span, Span]] = []
    source, target = list(remote[::-1]), list(local[::-1])
    while source:
        a, b = source.pop(), target.pop()
        length = min(a.length, b.length)
        pairs.append((Span(a.offset, length), Span(b.offset, length)))
        if a.length > length:
            source.append(Span(a.offset + length, a.length - length))
        if b.length > length:
            target.append(Span(b.offset + length, b.length - length))
    return pairs


def check_bounds(spans: Sequence[Span], nbytes: int) -> None:
    """Refuse spans that are empty or do not lie within a region of `nbytes` bytes.

    Raises:
        TransferError: one does not.
    """
    for span in spans:
        if span.offset < 0 or span.length <= 0 or span.offset + span.length > nbytes:
            raise TransferError(f"{span} lies outside a region of {nbytes} bytes")
