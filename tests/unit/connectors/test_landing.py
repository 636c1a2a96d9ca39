# SPDX-License-Identifier: Apache-2.0
"""The consumer's books."""

from vllm_epd.connectors.landing import LandingBook, LandingState


def test_one_fetch_serves_all_who_need_it() -> None:
    book = LandingBook(1000)
    assert book.use("k", "a") == 0
    assert book.use("k", "b") is None
    book.landed(0, 10)
    assert book["k"].state is LandingState.READY


def test_what_a_request_uses_is_never_dropped() -> None:
    book = LandingBook(0)
    book.use("k", "a")
    book.landed(0, 10)
    assert book.take_drops() == ()
    book.leave("a")
    assert book.take_drops() == (0,)
    assert book.take_drops() == ()
    assert book.get("k") is None


def test_idle_embeddings_stay_within_their_bytes_and_the_oldest_goes_first() -> None:
    book = LandingBook(20)
    for index, key in enumerate("abc"):
        book.use(key, "request")
        book.landed(index, 10)
    book.use("a", "request")
    book.leave("request")
    assert book.take_drops() == (1,)
    assert book.idle_bytes == 20


def test_a_new_fetch_has_a_new_number_so_that_a_late_drop_misses_it() -> None:
    book = LandingBook(0)
    book.use("k", "a")
    book.landed(0, 10)
    book.leave("a")
    assert book.use("k", "b") == 1
    assert book.take_drops() == (0,)


def test_a_failure_fails_those_who_wait_and_the_next_one_tries_again() -> None:
    book = LandingBook(100)
    book.use("k", "a")
    book.failed(0, "gone")
    assert book["k"].state is LandingState.FAILED
    assert book["k"].reason == "gone"
    assert book.use("k", "a") is None
    assert book.use("k", "b") == 1
    assert book["k"].state is LandingState.FETCHING


def test_what_lands_after_everyone_has_left_is_kept_as_a_cache_entry_or_dropped() -> None:
    book = LandingBook(0)
    book.use("k", "a")
    book.leave("a")
    book.landed(0, 10)
    assert book.take_drops() == (0,)


def test_a_failure_after_everyone_has_left_is_forgotten() -> None:
    book = LandingBook(0)
    book.use("k", "a")
    book.leave("a")
    book.failed(0, "gone")
    assert book.get("k") is None
