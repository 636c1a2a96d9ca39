# SPDX-License-Identifier: Apache-2.0
"""Laws of the page bookkeeping, by example and by random operations."""

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from vllm_epd.errors import EmbeddingLostError, PoolError, TransferError
from vllm_epd.transfer.base import check_bounds, pair_spans
from vllm_epd.transfer.pool import PagedPool, Span


@pytest.mark.parametrize(("capacity", "page"), [(1023, 1024), (1024, 0), (1024, -1)])
def test_a_pool_without_a_page_is_refused(capacity, page):
    with pytest.raises(PoolError, match="holds no page"):
        PagedPool(capacity, page)


@pytest.mark.parametrize("nbytes", [4097, 0, -1])
def test_an_item_that_can_never_fit_is_refused_with_both_sizes(nbytes):
    with pytest.raises(PoolError, match=f"{nbytes} bytes does not fit a pool of 4096"):
        PagedPool(4096, 1024).reserve("a", nbytes, 0.0)


def test_an_item_is_reserved_once():
    pool = PagedPool(4096, 1024)
    pool.reserve("a", 1024, 0.0)
    with pytest.raises(PoolError, match="'a' is held already"):
        pool.reserve("a", 1024, 0.0)
    assert pool.free_bytes == 3072


def test_pinned_items_leave_no_room_and_unpinned_ones_make_it():
    pool = PagedPool(4096, 1024)
    assert pool.reserve("a", 3000, 0.0) is not None
    pool.pin("a", "lease", deadline=10.0)
    assert pool.reserve("b", 2000, 1.0) is None
    assert pool.unpin("lease") == "a"
    assert pool.unpin("lease") is None
    assert pool.reserve("b", 2000, 1.0) is not None
    assert "a" not in pool


def test_room_is_what_is_free_or_unpinned_in_whole_pages():
    pool = PagedPool(4096, 1024)
    pool.reserve("cached", 1500, 0.0)
    pool.reserve("held", 1, 0.0)
    pool.pin("held", "lease", deadline=5.0)
    assert pool.has_room([1024, 1024, 1024], 0.0)
    assert pool.has_room([], 0.0)
    assert not pool.has_room([1025, 1025], 0.0)
    assert pool.has_room([4096], 5.0)
    assert "cached" in pool, "asking evicts nothing"


def test_a_pin_id_holds_one_item_and_a_second_call_moves_its_deadline():
    pool = PagedPool(4096, 1024)
    pool.reserve("a", 1, 0.0)
    pool.reserve("b", 1, 0.0)
    pool.pin("a", "lease", deadline=1.0)
    with pytest.raises(PoolError, match="'lease' holds another item"):
        pool.pin("b", "lease", deadline=9.0)
    assert not pool.is_pinned("b")
    pool.pin("a", "lease", deadline=3.0)
    assert pool.expire(2.0) == 0
    assert pool.expire(3.0) == 1
    assert not pool.is_pinned("a")


def test_what_is_not_held_can_neither_be_pinned_nor_measured():
    pool = PagedPool(1024, 1024)
    for ask in (lambda: pool.pin("a", "p", 1.0), lambda: pool.spans("a"), lambda: pool.nbytes("a")):
        with pytest.raises(EmbeddingLostError, match="'a' is not held"):
            ask()


def test_a_lease_that_has_run_out_holds_nothing_and_is_counted():
    pool = PagedPool(2048, 1024)
    pool.reserve("a", 2048, 0.0)
    pool.pin("a", "lease", deadline=5.0)
    assert pool.reserve("b", 1, 4.9) is None
    assert (pool.expired, pool.evicted) == (0, 0)
    assert pool.reserve("b", 1, 5.0) is not None
    assert (pool.expired, pool.evicted) == (1, 1)
    with pytest.raises(EmbeddingLostError):
        pool.spans("a")


def test_removing_an_item_is_no_eviction_and_ends_its_pins():
    pool = PagedPool(2048, 1024)
    pool.reserve("a", 1, 0.0)
    pool.pin("a", "lease", deadline=5.0)
    pool.remove("a")
    pool.remove("a")
    assert pool.unpin("lease") is None
    assert (pool.evicted, pool.expired, pool.free_bytes) == (0, 0, 2048)


def test_the_least_recently_used_goes_first_and_only_as_much_as_needed():
    pool = PagedPool(3072, 1024)
    for key in "abc":
        pool.reserve(key, 1024, 0.0)
    pool.pin("a", "x", 9.0)
    pool.unpin("x")
    pool.reserve("d", 1024, 1.0)
    assert [key in pool for key in "abcd"] == [True, False, True, True]
    assert pool.evicted == 1


def test_neighbouring_pages_are_one_span_and_others_are_not():
    pool = PagedPool(4096, 1024)
    assert pool.reserve("a", 1024, 0.0) == (Span(0, 1024),)
    assert pool.reserve("b", 1024, 0.0) == (Span(1024, 1024),)
    assert pool.reserve("c", 1500, 0.0) == (Span(2048, 1500),)
    pool.remove("a")
    pool.remove("c")
    assert pool.reserve("d", 2500, 0.0) == (Span(0, 1024), Span(2048, 1476))


PAGES = 16
PAGE = 64


class PoolMachine(RuleBasedStateMachine):
    """Random operations against a model that knows only pins and sizes."""

    def __init__(self):
        super().__init__()
        self.pool = PagedPool(PAGES * PAGE, PAGE)
        self.clock = 0.0
        self.names = 0
        self.pins = {}

    def _name(self):
        self.names += 1
        return str(self.names)

    def _live(self):
        return {key for key, deadline in self.pins.values() if deadline > self.clock and key in self.pool}

    @rule(sizes=st.lists(st.integers(1, PAGES * PAGE), min_size=1, max_size=3))
    def reserve(self, sizes):
        held = sum(-(-self.pool.nbytes(key) // PAGE) for key in self._live())
        fits = held + sum(-(-size // PAGE) for size in sizes) <= PAGES
        assert self.pool.has_room(sizes, self.clock) == fits
        before, evicted = set(self.pool), self.pool.evicted
        for size in sizes if fits else []:
            key = self._name()
            spans = self.pool.reserve(key, size, self.clock)
            assert spans is not None
            assert sum(span.length for span in spans) == self.pool.nbytes(key) == size
            self.pool.pin(key, self._name(), self.clock + 3)
            self.pins[str(self.names)] = (key, self.clock + 3)
        assert self.pool.evicted - evicted == len(before - set(self.pool))

    @precondition(lambda self: len(self.pool))
    @rule(data=st.data(), seconds=st.integers(0, 5))
    def pin(self, data, seconds):
        key, pin = data.draw(st.sampled_from(list(self.pool))), self._name()
        self.pool.pin(key, pin, self.clock + seconds)
        self.pins[pin] = (key, self.clock + seconds)

    @precondition(lambda self: self.pins)
    @rule(data=st.data())
    def unpin(self, data):
        pin = data.draw(st.sampled_from(sorted(self.pins)))
        key, deadline = self.pins.pop(pin)
        if deadline > self.clock and key in self.pool:
            assert self.pool.unpin(pin) == key
        else:
            assert self.pool.unpin(pin) in (key, None)

    @precondition(lambda self: len(self.pool))
    @rule(data=st.data())
    def remove(self, data):
        key = data.draw(st.sampled_from(list(self.pool)))
        self.pool.remove(key)
        self.pins = {pin: held for pin, held in self.pins.items() if held[0] != key}

    @rule(seconds=st.integers(1, 3))
    def wait(self, seconds):
        self.clock += seconds
        self.pool.expire(self.clock)

    @invariant()
    def no_page_is_shared_or_lost(self):
        pieces = sorted(span for key in self.pool for span in self.pool.spans(key))
        assert all(one.offset + one.length <= two.offset for one, two in pairwise(pieces))
        held = sum(-(-self.pool.nbytes(key) // PAGE) * PAGE for key in self.pool)
        assert held + self.pool.free_bytes == self.pool.capacity_bytes

    @invariant()
    def what_is_pinned_stays(self):
        for key, deadline in self.pins.values():
            assert deadline <= self.clock or self.pool.is_pinned(key)


PoolMachine.TestCase.settings = settings(derandomize=True, deadline=None, max_examples=100)
TestPoolMachine = PoolMachine.TestCase


@settings(derandomize=True, deadline=None)
@given(st.lists(st.integers(1, 50), min_size=1, max_size=8), st.lists(st.integers(1, 50), min_size=1, max_size=8))
def test_pair_spans_covers_both_sides_in_order(left, right):
    total = min(sum(left), sum(right))
    a, b = _spans(left, total), _spans(right, total)
    pairs = pair_spans(a, b)
    assert all(one.length == two.length for one, two in pairs)
    assert _bytes(one for one, _ in pairs) == _bytes(a)
    assert _bytes(two for _, two in pairs) == _bytes(b)


def test_spans_of_different_length_do_not_pair():
    with pytest.raises(TransferError, match="differ in total length"):
        pair_spans([Span(0, 2)], [Span(0, 1)])


@pytest.mark.parametrize("span", [Span(-1, 2), Span(0, 0), Span(0, -1), Span(1, 8), Span(2**64, 1)])
def test_a_span_outside_its_region_is_refused(span):
    check_bounds([Span(0, 8)], 8)
    with pytest.raises(TransferError, match="outside a region of 8 bytes"):
        check_bounds([Span(0, 8), span], 8)


def _spans(lengths, total):
    spans, offset = [], 0
    for length in lengths:
        length = min(length, total - sum(span.length for span in spans))
        if length:
            spans.append(Span(offset, length))
        offset += 100
    return spans


def _bytes(spans):
    return [byte for span in spans for byte in range(span.offset, span.offset + span.length)]
