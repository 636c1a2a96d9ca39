# SPDX-License-Identifier: Apache-2.0
"""Pages are given out once, in as few runs as there can be."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vllm_epd.transfer.pages import FreePages, Run

PAGES = 40


def pages_of(runs):
    return [page for run in runs for page in range(run.first, run.end)]


def fragmented(*kept):
    """Free pages but for the runs `kept`."""
    free = FreePages(PAGES)
    runs = free.take(PAGES)
    held = set(pages_of(kept))
    free.give(Run(page, 1) for page in pages_of(runs) if page not in held)
    return free


def test_all_pages_are_one_run_at_first_and_after_whatever_came_back():
    free = FreePages(PAGES)
    taken = [free.take(count) for count in (7, 1, 30, 2)]
    for runs in taken[::2] + taken[1::2]:
        free.give(runs)
    assert free.take(PAGES) == (Run(0, PAGES),)


def test_the_run_that_fits_best_is_taken():
    free = fragmented(Run(10, 1), Run(14, 1))
    assert free.take(3) == (Run(11, 3),)
    assert free.take(10) == (Run(0, 10),)


def test_no_more_runs_than_needed_where_none_is_large_enough():
    free = fragmented(Run(5, 1), Run(10, 1), Run(20, 10))
    assert free.take(15) == (Run(0, 5), Run(30, 10))
    assert free.take(13) == (Run(6, 4), Run(11, 9))


def test_more_than_is_free_is_a_mistake_of_the_caller():
    free = FreePages(PAGES)
    with pytest.raises(AssertionError, match="41 pages are wanted, 40 are free"):
        free.take(PAGES + 1)


@given(st.lists(st.tuples(st.booleans(), st.integers(1, 12)), max_size=60))
def test_no_page_is_lost_or_given_out_twice(steps):
    free, held = FreePages(PAGES), []
    for takes, number in steps:
        if takes and number <= free.count:
            held.append(free.take(number))
            assert len(pages_of(held[-1])) == number
        elif not takes and held:
            free.give(held.pop(number % len(held)))
        pages = [page for runs in held for page in pages_of(runs)]
        assert len(pages) == len(set(pages)) == PAGES - free.count
        assert set(pages) <= set(range(PAGES))
    for runs in held:
        free.give(runs)
    assert free.take(PAGES) == (Run(0, PAGES),)
