# SPDX-License-Identifier: Apache-2.0
"""What the scheduler half tells the worker half with each engine step."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Offer:
    """An embedding of this step that goes into the pool.

    Attributes:
        key: its content key.
        lease: that it gets.
        nbytes: its size there, as announced to its consumers.
    """

    key: str
    lease: str
    nbytes: int


@dataclass(frozen=True, slots=True)
class Load:
    """An embedding that is here as `landing` and that the model reads under its content key."""

    key: str
    landing: int


@dataclass(frozen=True, slots=True)
class Merge:
    """An item of which each part is here as a landing of its own, in order."""

    key: str
    parts: tuple[Load, ...]


@dataclass(frozen=True, slots=True)
class StepMetadata:
    """Orders for one step, in the order in which the worker carries them out.

    Attributes:
        loads: what goes from the pool into the model's encoder cache.
        merges: the same for items in parts, which the model reads as one.
        offers: embeddings to put into the pool, those encoded in this step or cached from an earlier one.
    """

    loads: tuple[Load, ...] = ()
    merges: tuple[Merge, ...] = ()
    offers: tuple[Offer, ...] = ()
