# SPDX-License-Identifier: Apache-2.0
"""What was measured of one model under one codec."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self


@dataclass(frozen=True, slots=True)
class Distance:
    """Absolute differences of the log probabilities of the same tokens after the same ones, in nats."""

    tokens: int
    mean: float
    worst: float

    @classmethod
    def of(cls, differences: Sequence[float]) -> Self:
        return cls(len(differences), sum(differences) / len(differences), max(differences))


@dataclass(frozen=True, slots=True)
class Embeddings:
    """The embeddings of all images, as a consumer of the topology's has them, beside those sent without a codec.

    Attributes:
        items: how many.
        rows: how many in all of them.
        raw_bytes: of an item as the encoder makes it, on average.
        mean_error: of the rows, in the Euclidean norm relative to the row's.
        worst_error: of the worst row.
    """

    items: int
    rows: int
    raw_bytes: float
    mean_error: float
    worst_error: float


@dataclass(frozen=True, slots=True)
class Codec:
    """One model under one codec.

    Attributes:
        state: the guard's verdict at the encode instance.
        guard_error: the worst row that the guard has seen.
        item_bytes: that the prefill instance has fetched for an image, on average, by its own counters.
        forced: of the tokens of the single server's answers, given as part of the prompt.
        greedy: of the tokens of the single server's answers, up to the first one where the topology goes another way.
        answers: how many were compared.
        same: in how many of them all tokens are those of the single server.
    """

    model: str
    codec: str
    state: str
    guard_error: float
    item_bytes: float
    embeddings: Embeddings
    forced: Distance
    greedy: Distance
    answers: int
    same: int
