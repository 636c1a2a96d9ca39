# SPDX-License-Identifier: Apache-2.0
"""The bytes of embeddings under a codec against those without one."""

from collections.abc import Iterator

from tests.bench.comparisons.base import Row
from tests.bench.results import Results
from vllm_epd.transfer.codec import NONE

QUARTER = 0.26
"""Target for float32: one byte of four, and a scale a row."""


def against_no_codec(results: Results) -> Iterator[Row]:
    for each in results.codecs:
        none = results.codec(each.model, NONE)
        if none and each is not none:
            name = f"{each.model}, an image as {each.codec} vs {NONE}: bytes"
            yield Row(name, each.item_bytes, none.item_bytes, "B", QUARTER)
