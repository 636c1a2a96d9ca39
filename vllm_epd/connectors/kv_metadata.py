# SPDX-License-Identifier: Apache-2.0
"""What the scheduler half of the KV connector tells the worker half with each engine step."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class SaveBlocks:
    """Blocks that this step completes and that go into the pool as one chunk, under a lease."""

    key: str
    lease: str
    block_ids: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class LoadBlocks:
    """A chunk that is here as `landing`: its blocks from `skip` on go to `block_ids`."""

    key: str
    landing: int
    skip: int
    block_ids: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class KVStep:
    """Orders for one step: loads before the model runs, saves after it."""

    loads: tuple[LoadBlocks, ...] = ()
    saves: tuple[SaveBlocks, ...] = ()
