# SPDX-License-Identifier: Apache-2.0
"""What a store keeps and what is claimed of it."""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from math import inf, prod

import torch

from vllm_epd.transfer.codec import NONE
from vllm_epd.transfer.pool import Span


@dataclass(frozen=True, slots=True)
class Tried:
    """What a codec that nobody has vouched for does to the item that is encoded with it.

    Attributes:
        error: of the worst row, relative in the Euclidean norm; on the host once the item is written.
        bound: largest error that is let pass.
    """

    error: torch.Tensor
    bound: float


@dataclass(frozen=True, slots=True)
class StoredItem:
    """What is needed to read an item.

    Attributes:
        spans: where its bytes lie.
        shape: of the tensor.
        dtype: of the tensor.
        written: an event after which the bytes are there, and the answers in `finite` and `tried`.
        codec: that the bytes are encoded with.
        finite: whether all numbers are; None where nobody asked.
        tried: how it came through its codec; None where it needs no such proof.
    """

    spans: tuple[Span, ...]
    shape: tuple[int, ...]
    dtype: torch.dtype
    written: torch.Event | None = None
    codec: str = NONE
    finite: torch.Tensor | None = None
    tried: Tried | None = None

    @property
    def raw_bytes(self) -> int:
        """Size of the tensor, whatever its bytes are encoded with."""
        return prod(self.shape) * int(self.dtype.itemsize)

    @property
    def ready(self) -> bool:
        """Whether the device has written the bytes."""
        return self.written is None or bool(self.written.query())

    @property
    def objection(self) -> str | None:
        """Why it is not to be sent, after its name; None where nothing is known against it. Only once it is `ready`."""
        if self.finite is not None and not self.finite:
            return "is not finite"
        if self.tried is not None and self.tried.error > self.tried.bound:
            return (
                f"fits the pool only as {self.codec}, which changes a row by {float(self.tried.error):.4f} of its norm,"
                f" more than {self.tried.bound:.4f}"
            )
        return None


@dataclass(frozen=True, slots=True)
class Claim:
    """One item that is to be kept: `nbytes` under a pin that ends by itself after `pin_s`."""

    key: str
    nbytes: int
    pin: str
    pin_s: float = inf


class Place(Enum):
    """What a claim has found."""

    HELD = "held"
    """The bytes are there."""
    NEW = "new"
    """Pages for the claimer to fill."""
    PENDING = "pending"
    """Pages that somebody else has claimed and not filled yet."""


def lease_pin(lease: str) -> str:
    """The pin of a lease: what a peer names as a lease can never be a pin of another kind."""
    return f"lease-{lease}"


def spread(flat: torch.Tensor, pieces: Sequence[torch.Tensor]) -> None:
    """Copy `flat` into the pieces of a region that an item consists of, all of them uint8 in one dimension."""
    for source, piece in zip(flat.split([piece.numel() for piece in pieces]), pieces, strict=True):
        piece.copy_(source, non_blocking=True)
