# SPDX-License-Identifier: Apache-2.0
"""Laws of the page bookkeeping, by example and by random operations."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, invariant, rule

from vllm_epd.errors import EmbeddingLostError, PoolError
from vllm_epd.transfer.base import pair_spans
from vllm_epd.transfer.pool import PagedPool, Span


def test_an_item_larger_than_the_pool_is_refused_with_both_sizes() -> None:
    with pytest.raises(PoolError, match="4097 bytes does not fit a pool of 4096"):
        PagedPool(4096, 1024).reserve("a", 4097, 0.0)


def test_pinned_items_leave_no_room_and_unpinned_ones_make_it() -> None:
    pool = PagedPool(4096, 1024)
    assert pool.reserve("a", 3000, 0.0) is not None
    pool.pin("a", "lease", deadline=10.0)
    assert pool.reserve("b", 2000, 1.0) is None
    assert pool.unpin("lease")
    assert not pool.unpin("lease")
    assert pool.reserve("b", 2000, 1.0) is not None
    assert "a" not in pool


def test_a_lease_that_has_run_out_holds_nothing() -> None:
    pool = PagedPool(2048, 1024)
    pool.reserve("a", 2048, 0.0)
    pool.pin("a", "lease", deadline=5.0)
    assert pool.reserve("b", 1, 4.9) is None
    assert pool.reserve("b", 1, 5.0) is not None
    with pytest.raises(EmbeddingLostError):
        pool.spans("a")


def test_the_least_recently_used_goes_first_and_only_as_much_as_needed() -> None:
    pool = PagedPool(3072, 1024)
    for key in "abc":
        pool.reserve(key, 1024, 0.0)
    pool.pin("a", "x", 9.0)
    pool.unpin("x")
    pool.reserve("d", 1024, 1.0)
    assert [key in pool for key in "abcd"] == [True, False, True, True]


def test_spans_join_neighbouring_pages_and_end_with_the_item() -> None:
    pool = PagedPool(4096, 1024)
    assert pool.reserve("a", 2500, 0.0) == (Span(0, 2500),)


class PoolMachine(RuleBasedStateMachine):
    """Random reserve, pin, unpin, remove: pages never overlap and never vanish."""

    keys = Bundle("keys")

    def __init__(self) -> None:
        super().__init__()
        self.pool = PagedPool(16 * 64, 64)
        self.clock = 0.0
        self.counter = 0
        self.pins: dict[str, tuple[str, float]] = {}

    @rule(target=keys, nbytes=st.integers(1, 16 * 64))
    def reserve(self, nbytes: int) -> str:
        self.counter += 1
        self.clock += 1
        key = f"k{self.counter}"
        live = {held for held, deadline in self.pins.values() if deadline > self.clock and held in self.pool}
        got = self.pool.reserve(key, nbytes, self.clock)
        assert all(held in self.pool for held in live)
        assert got is None or sum(span.length for span in got) == nbytes
        return key

    @rule(key=keys, seconds=st.integers(0, 5))
    def pin(self, key: str, seconds: int) -> None:
        if key in self.pool:
            self.counter += 1
            self.pool.pin(key, f"p{self.counter}", self.clock + seconds)
            self.pins[f"p{self.counter}"] = (key, self.clock + seconds)

    @rule(data=st.data())
    def unpin(self, data: st.DataObject) -> None:
        if self.pins:
            pin = data.draw(st.sampled_from(sorted(self.pins)))
            self.pool.unpin(pin)
            del self.pins[pin]

    @rule(key=keys)
    def remove(self, key: str) -> None:
        self.pool.remove(key)

    @invariant()
    def pages_are_conserved(self) -> None:
        taken = [page for item in self.pool._items.values() for page in item.pages]
        assert sorted(taken + self.pool._free) == list(range(self.pool.num_pages))


TestPoolMachine = PoolMachine.TestCase


@given(st.lists(st.integers(1, 50), min_size=1, max_size=8), st.lists(st.integers(1, 50), min_size=1, max_size=8))
def test_pair_spans_covers_both_sides_in_order(left: list[int], right: list[int]) -> None:
    total = min(sum(left), sum(right))
    a, b = _spans(left, total), _spans(right, total)
    pairs = pair_spans(a, b)
    assert all(one.length == two.length for one, two in pairs)
    assert _bytes(one for one, _ in pairs) == _bytes(a)
    assert _bytes(two for _, two in pairs) == _bytes(b)


def _spans(lengths: list[int], total: int) -> list[Span]:
    spans, offset = [], 0
    for length in lengths:
        length = min(length, total - sum(span.length for span in spans))
        if length:
            spans.append(Span(offset, length))
        offset += 100
    return spans


def _bytes(spans: object) -> list[int]:
    return [byte for span in spans for byte in range(span.offset, span.offset + span.length)]  # type: ignore[attr-defined]
