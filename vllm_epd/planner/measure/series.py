# SPDX-License-Identifier: Apache-2.0
"""What is asked for a profile: series of requests that differ in one thing each. Pure."""

from collections.abc import Iterator
from dataclasses import dataclass

from vllm_epd.errors import ConfigError
from vllm_epd.planner.measure.chat import Shot
from vllm_epd.planner.profile.media import measure_visual
from vllm_epd.planner.profile.profile import Native, Tiled
from vllm_epd.planner.workload.requests import Item, Kind

TEXT = (16, 64, 128, 256, 512, 1024, 2048, 4096, 8192)
"""Words of prompts."""

SIZES = ((112, 112), (168, 168), (224, 224), (336, 336), (448, 448), (560, 448), (672, 672), (896, 896), (1344, 1008))
"""Of images, one in each request."""

MANY = (2, 3, 4, 6)
"""Images of one request."""

MANY_SIZE = (224, 224)
TOGETHER = (1, 2, 4, 8, 16)
"""Requests that are generated for at once."""

CONTEXTS = (16, 256)
"""Words of their prompts."""

GENERATED = 96
FEW = 4
"""Tokens of output: where decode is measured, and elsewhere."""

LONG = 384
CONTENDING = 1024
"""Tokens of an answer that is generated beside prompts of another instance, and words of these."""

SHARE = 0.85
"""Of a model's context that prompts may take, by what is known beforehand."""


@dataclass(frozen=True, slots=True)
class Round:
    """Requests that are sent at once, so many times.

    Attributes:
        series: `text`, `image`, `images` or `decode`; `alone` and `contended` where engines may contend for cores.
        shots: the requests; of `contended`, one for which tokens are generated, and one that is prefilled meanwhile,
            again and again.
        repeats: how often.
    """

    series: str
    shots: tuple[Shot, ...]
    repeats: int


def rounds(media: Tiled | Native, max_context: int, tokens_per_word: float, repeats: int) -> tuple[Round, ...]:
    """All that is asked, as far as the model's context has room for it.

    Args:
        media: what images become.
        max_context: tokens of a prompt and its output.
        tokens_per_word: of text.
        repeats: of each round.

    Raises:
        ConfigError: the context is too short to see a slope.
    """
    room = int(SHARE * max_context)
    found = (*_text(room / tokens_per_word), *_images(media, room), *_many(media, room))
    if sum(each[0] == "text" for each in found) < 3 or sum(each[0] == "image" for each in found) < 3:
        raise ConfigError(f"a context of {max_context} tokens is too short for a profile; serve it with a longer")
    single = tuple(Round(series, (shot,), repeats) for series, shot in found)
    return single + tuple(_decode(room / tokens_per_word, repeats))


def contention_rounds(max_context: int, tokens_per_word: float, repeats: int) -> tuple[Round, ...]:
    """An answer on its own and beside prompts that another instance prefills, as far as the context has room for it."""
    words = SHARE * max_context / tokens_per_word
    prompt = Shot(max((each for each in TEXT if each <= min(words, CONTENDING)), default=0))
    answer = Shot(CONTEXTS[0], (), LONG)
    if prompt.words == 0 or CONTEXTS[0] * tokens_per_word + LONG > SHARE * max_context:
        return ()
    return Round("alone", (answer,), repeats), Round("contended", (answer, prompt), repeats)


def _text(words: float) -> Iterator[tuple[str, Shot]]:
    yield from (("text", Shot(each, (), FEW)) for each in TEXT if each <= words)


def _images(media: Tiled | Native, room: int) -> Iterator[tuple[str, Shot]]:
    yield from (("image", Shot(8, (size,), FEW)) for size in SIZES if image_tokens(media, size) <= room)


def _many(media: Tiled | Native, room: int) -> Iterator[tuple[str, Shot]]:
    each = image_tokens(media, MANY_SIZE)
    yield from (("images", Shot(8, (MANY_SIZE,) * count, FEW)) for count in MANY if count * each <= room)


def _decode(words: float, repeats: int) -> Iterator[Round]:
    for context in CONTEXTS:
        if context + GENERATED <= words:
            yield from (Round("decode", (Shot(context, (), GENERATED),) * count, repeats) for count in TOGETHER)


def image_tokens(media: Tiled | Native, size: tuple[int, int]) -> int:
    """Tokens of an image of this width and height."""
    return measure_visual(media, Item(Kind.IMAGE, *size)).tokens
