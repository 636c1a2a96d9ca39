# SPDX-License-Identifier: Apache-2.0
"""What is in requests. Pure; the random generator is given."""

from collections.abc import Iterator, Sequence
from itertools import count
from math import log

import numpy as np
from numpy.random import Generator

from vllm_epd.planner.workload.checks import parse_size
from vllm_epd.planner.workload.requests import Item, Kind
from vllm_epd.planner.workload.spec import Choices, LogNormal, Numbers, RequestClass, Reuse, Sizes, Uniform

Shape = tuple[int, int, tuple[Item, ...]]
"""Tokens of text, tokens of output, media."""


class Shapes:
    """Draws one request after the other."""

    def __init__(self, classes: Sequence[RequestClass], reuse: Reuse, random: Generator) -> None:
        self._classes = classes
        self._random = random
        weights = np.array([each.weight for each in classes])
        self._shares = weights / weights.sum()
        self._names = _Names(reuse, random)

    def draw(self) -> Shape:
        """The next one."""
        chosen = self._classes[int(self._random.choice(len(self._classes), p=self._shares))]
        text, output = (max(1, _whole(each, self._random)) for each in (chosen.text_tokens, chosen.output_tokens))
        return text, output, tuple(self._items(chosen))

    def _items(self, chosen: RequestClass) -> Iterator[Item]:
        for _ in range(_whole(chosen.images, self._random)):
            width, height = self._size(chosen.image_sizes)
            yield Item(Kind.IMAGE, width, height, name=self._names.draw(Kind.IMAGE, width, height, 1))
        for _ in range(_whole(chosen.videos, self._random)):
            width, height = self._size(chosen.frame_sizes)
            frames = max(1, _whole(chosen.frames, self._random))
            yield Item(Kind.VIDEO, width, height, frames, name=self._names.draw(Kind.VIDEO, width, height, frames))
        for _ in range(_whole(chosen.audios, self._random)):
            seconds = max(0.1, _number(chosen.audio_s, self._random))
            yield Item(Kind.AUDIO, frames=0, seconds=seconds, name=self._names.draw(Kind.AUDIO, seconds))

    def _size(self, sizes: Sizes) -> tuple[int, int]:
        if isinstance(sizes, dict):
            weights = np.array(list(sizes.values()))
            return parse_size(list(sizes)[int(self._random.choice(len(weights), p=weights / weights.sum()))])
        return parse_size(sizes[int(self._random.integers(len(sizes)))])


class _Names:
    """Names of media: equal ones have the same bytes, so that they must have the same size too."""

    def __init__(self, reuse: Reuse, random: Generator) -> None:
        self._share = reuse.share
        self._random = random
        weights = np.arange(1, reuse.pool + 1, dtype=float) ** -reuse.zipf
        self._shares = weights / weights.sum()
        self._known: dict[tuple[object, ...], int] = {}
        self._numbers = count()

    def draw(self, *size: object) -> int | None:
        """The name of the next medium of that size; None for one like no other."""
        if self._share == 0 or self._random.random() >= self._share:
            return None
        place = int(self._random.choice(len(self._shares), p=self._shares))
        key = (*size, place)
        if key not in self._known:
            self._known[key] = next(self._numbers)
        return self._known[key]


def _whole(numbers: Numbers, random: Generator) -> int:
    return round(_number(numbers, random))


def _number(numbers: Numbers, random: Generator) -> float:
    if isinstance(numbers, Uniform):
        return float(random.integers(numbers.low, numbers.high, endpoint=True))
    if isinstance(numbers, LogNormal):
        variance = log(1 + numbers.cv**2)
        return float(random.lognormal(log(numbers.mean) - variance / 2, variance**0.5))
    if isinstance(numbers, Choices):
        weights = np.array(numbers.weights or (1.0,) * len(numbers.values))
        return float(numbers.values[int(random.choice(len(weights), p=weights / weights.sum()))])
    return float(numbers)
