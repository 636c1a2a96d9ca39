# SPDX-License-Identifier: Apache-2.0
"""What devices have room for: the most images of a request, the largest batch, the largest KV cache. Pure."""

from collections.abc import Callable, Iterator

import msgspec

from experiments.result import Cell, Findings, Value
from experiments.setting import Experiment, image
from vllm_epd.planner.profile.largest import (
    Batch,
    Bound,
    Device,
    Largest,
    largest_batch,
    largest_kv_share,
    most_images,
)
from vllm_epd.planner.profile.profile import Tiled
from vllm_epd.planner.profile.store import load_profile
from vllm_epd.planner.workload.requests import Item
from vllm_epd.types import RoleSet

TEXT_TOKENS = 22
KV_SHARE = 0.8
IMAGES = 10
BLOCKS = 3000
"""Tiles that the paper's code sets memory for embeddings aside for."""
LARGE = "4032x3024"
SHORT = {Bound.MEMORY: "OOM", Bound.CONTEXT: "OOCL"}
"""As the paper writes it."""

Table = dict[str, dict[str, tuple[Value, ...]]]
"""The paper's values, by name of the profile, and by size or number of images."""


Found = Callable[[str, str], Iterator[tuple[str, Largest]]]
"""Ours, by column, of a profile and a size or a number of images."""


class MostImages(Experiment, frozen=True, tag="most images"):
    """The most images of one request: encode and prefill together, and the less of both where they are apart."""

    paper: Table = msgspec.field(default_factory=dict)


class LargestBatch(Experiment, frozen=True, tag="largest batch"):
    """The largest batch of requests of ten images: encode and prefill together, encode, prefill."""

    paper: Table = msgspec.field(default_factory=dict)


class KvShare(Experiment, frozen=True, tag="kv share"):
    """The largest part of free memory for KV caches where prefill is: encode and prefill together, prefill."""

    paper: Table = msgspec.field(default_factory=dict)


def most(experiment: MostImages) -> Findings:
    """Table 2."""

    def found(name: str, size: str) -> Iterator[tuple[str, Largest]]:
        item = image(size)
        together, encode, prefill = (
            most_images(_device(name, letters), item, TEXT_TOKENS, KV_SHARE) for letters in ("EP", "E", "P")
        )
        yield "DistServe", together
        yield "EPD", min(encode, prefill, key=lambda each: each.count)

    return _findings(experiment.paper, found, "images")


def batches(experiment: LargestBatch) -> Findings:
    """Table 3."""

    def found(name: str, size: str) -> Iterator[tuple[str, Largest]]:
        for column, letters in (("DistServe EP", "EP"), ("EPD E", "E"), ("EPD P", "P")):
            yield column, largest_batch(_device(name, letters), IMAGES, image(size), TEXT_TOKENS, KV_SHARE)

    return _findings(experiment.paper, found, "requests")


def shares(experiment: KvShare) -> Findings:
    """Table 8."""

    def found(name: str, images: str) -> Iterator[tuple[str, Largest]]:
        item: Item = image(LARGE)
        for column, letters in (("DistServe", "EP"), ("EPD", "P")):
            yield column, largest_kv_share(_device(name, letters, pool=True), Batch(1, int(images), item, TEXT_TOKENS))

    return _findings(experiment.paper, found, "%")


def _device(name: str, letters: str, *, pool: bool = False) -> Device:
    profile = load_profile(name)
    assert isinstance(profile.media, Tiled)
    tokens = BLOCKS * profile.media.tokens if pool else None
    return Device(profile, RoleSet.from_letters(letters), pool_tokens=tokens)


def _findings(table: Table, found: Found, unit: str) -> Findings:
    cells = []
    for name, rows in table.items():
        for row, papers in rows.items():
            for (column, largest), paper in zip(found(name, row), papers, strict=True):
                cells.append(Cell("", f"{name.partition('@')[0]} {row}", column, paper, _shown(largest), unit=unit))
    return Findings(tuple(cells))


def _shown(largest: Largest) -> Value:
    """A number, or what keeps it from being one."""
    return SHORT[largest.bound] if largest.bound is not None and not largest.count else float(largest.count)
