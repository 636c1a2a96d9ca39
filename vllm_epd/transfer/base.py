# SPDX-License-Identifier: Apache-2.0
"""The seam between moving bytes and everything else.

A transport moves bytes between one registered region here and one there, one-sided: the reader does all the work. It
knows nothing of keys, leases or vLLM. Objects of this module stay in their process; what crosses is the `bytes` of
`describe()`.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar

import torch

from vllm_epd.transfer.pool import Span


class Read(ABC):
    """A read on its way."""

    @abstractmethod
    def poll(self) -> bool:
        """Make progress; True once all bytes have landed. Not after `close`.

        Raises:
            TransferError: the read failed; the landing bytes are undefined.
        """

    @abstractmethod
    def close(self) -> None:
        """Let go of the read's resources; a second call does nothing."""


class Peer(ABC):
    """A connected remote region. `close` forgets it; reads in flight must be over."""

    @abstractmethod
    def close(self) -> None:
        """Forget the remote region; a second call does nothing."""


class Transport(ABC):
    """Reads from remote regions into the one region registered here.

    Used from one thread. All methods but `close` may raise TransferError.
    """

    name: ClassVar[str]

    @abstractmethod
    def register(self, region: torch.Tensor) -> None:
        """Make `region` (uint8, one dimension, contiguous) readable by peers and the target of reads; once."""

    @abstractmethod
    def describe(self) -> bytes:
        """What a peer needs to read from the registered region."""

    @abstractmethod
    def connect(self, description: bytes) -> Peer:
        """Connect to the region behind another transport's `describe()`."""

    @abstractmethod
    def read(self, peer: Peer, remote: Sequence[Span], local: Sequence[Span]) -> Read:
        """Start to copy the bytes of `remote` into `local`, both in order and of the same total length."""

    @abstractmethod
    def progress(self) -> None:
        """Serve peers that read from here; called often while one may. Cheap when there is nothing to do."""

    @abstractmethod
    def close(self) -> None:
        """Deregister and stop; a second call does nothing."""


def pair_spans(remote: Sequence[Span], local: Sequence[Span]) -> list[tuple[Span, Span]]:
    """Cut two lists of spans of the same total length into pairs of equal length.

    Raises:
        ValueError: the total lengths differ.
    """
    if sum(span.length for span in remote) != sum(span.length for span in local):
        raise ValueError("remote and local spans differ in total length")
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
