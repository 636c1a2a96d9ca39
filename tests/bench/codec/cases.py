# SPDX-License-Identifier: Apache-2.0
"""What is asked of every codec: images of different sizes, one or two in a request."""

from collections.abc import Sequence
from random import Random

from tests.bench.cases import MODEL, WORDS
from tests.engine.traffic import SIZES, Json, image_part
from vllm_epd.transfer.codec_guard import TRIAL_ITEMS

REQUESTS = 12
OUTPUT_TOKENS = 12
CANDIDATES = 20
"""Likeliest tokens whose log probabilities come with each token of an answer."""

DTYPE = "float32"
"""In bfloat16 the answers of a single server differ from each other by more than those of two codecs."""


def questions() -> list[Json]:
    """Chat requests with one image and two in turn, no image twice."""
    return [_question(number) for number in range(REQUESTS)]


def trial_images() -> list[Json]:
    """As many other images as the guard measures a codec on."""
    return [image_part(8000 + number, _size(number)) for number in range(TRIAL_ITEMS)]


def question(parts: Sequence[Json]) -> Json:
    """A greedy chat request of these parts."""
    return {"model": MODEL, "temperature": 0, "messages": [{"role": "user", "content": list(parts)}]}


def _question(number: int) -> Json:
    words = " ".join(Random(f"codec {number}").choices(WORDS, k=8))
    images = [image_part(8100 + 10 * number + item, _size(number + item)) for item in range(1 + number % 2)]
    return question([*images, {"type": "text", "text": f"Describe {words}."}])


def _size(number: int) -> tuple[int, int]:
    return SIZES[number % len(SIZES)]
