# SPDX-License-Identifier: Apache-2.0
"""All variants, turn by turn, so that whatever else the machine does hits them alike."""

import contextlib
from collections.abc import Callable, Sequence

from tests.bench.errors import BenchError
from tests.bench.summary import Summary
from tests.bench.transfer.cases import READS, ROUNDS, SIZES
from tests.bench.transfer.pair import Pair
from tests.bench.transfer.results import Transfer
from tests.bench.transfer.variants import Variant


def measure_transfers(variants: Sequence[Variant], say: Callable[[str], None]) -> tuple[list[Transfer], int]:
    """The results, and how many variants failed; one whose hardware is missing is none of them."""
    with contextlib.ExitStack() as stack:
        pairs, failures = _start(variants, stack, say)
        return [transfer for nbytes in SIZES for transfer in _measure(pairs, nbytes)], failures


def _start(
    variants: Sequence[Variant], stack: contextlib.ExitStack, say: Callable[[str], None]
) -> tuple[list[Pair], int]:
    started, failures = [], 0
    for variant in variants:
        if missing := variant.missing():
            say(f"{variant.name}: left out, {missing}")
            continue
        pair = Pair(variant)
        stack.callback(pair.close)
        try:
            pair.connect()
        except BenchError as error:
            failures += 1
            say(f"FAILED {error}")
        else:
            started.append(pair)
        pair.pause()
    return started, failures


def _measure(pairs: Sequence[Pair], nbytes: int) -> list[Transfer]:
    seconds: dict[str, list[float]] = {pair.variant.name: [] for pair in pairs}
    for number in range(ROUNDS):
        for pair in pairs:
            pair.resume()
            seconds[pair.variant.name] += pair.measure(nbytes, READS[nbytes], check=number == 0)
            pair.pause()
    return [Transfer(name, nbytes, len(each), Summary.of(each)) for name, each in seconds.items()]
