# SPDX-License-Identifier: Apache-2.0
"""The hand-over of KV caches from prefill to decode: ours against vLLM's NIXL connector."""

from collections.abc import Iterator

from tests.bench.comparisons.base import Row
from tests.bench.handover.cases import NIXL, OURS, TOKENS
from tests.bench.results import Results

HANDOVER = 0.5
"""Target for the time from P's answer to D's first token."""


def against_nixl_kv(results: Results) -> Iterator[Row]:
    for tokens in TOKENS:
        mine, theirs = results.handover(OURS.name, tokens), results.handover(NIXL.name, tokens)
        if mine and theirs:
            name = f"hand-over of {tokens} tokens vs {NIXL.name}: p50"
            yield Row(name, mine.handover.p50 * 1e3, theirs.handover.p50 * 1e3, "ms", HANDOVER)
