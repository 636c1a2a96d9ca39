# SPDX-License-Identifier: Apache-2.0
"""The scheduler's books."""

from vllm_epd.connectors.landing import Drop, LandingBook, LandingState
from vllm_epd.connectors.metadata import Load


def test_one_fetch_serves_all_who_need_it() -> None:
    book = LandingBook()
    assert book.use("k", "a") == 0
    assert book.use("k", "b") is None
    assert not book.is_ready("k")
    book.landed(0)
    assert book.is_ready("k")


def test_what_a_request_uses_is_dropped_after_the_last_user_and_told_once() -> None:
    book = LandingBook()
    book.use("k", "a")
    book.use("k", "b")
    book.landed(0)
    book.leave("a")
    assert book.take_drops() == ()
    book.release("k", "b")
    assert book.take_drops() == (Drop(0, 0),)
    assert book.take_drops() == ()
    assert book.get("k") is None


def test_a_drop_says_after_how_many_loads_it_holds() -> None:
    book = LandingBook()
    book.use("k", "a")
    book.landed(0)
    book.load("k")
    book.load("k")
    assert book.take_loads() == (Load("k", 0), Load("k", 0))
    assert book.take_loads() == ()
    book.leave("a")
    assert book.take_drops() == (Drop(0, 2),)


def test_a_new_fetch_has_a_new_number_so_that_a_late_report_misses_it() -> None:
    book = LandingBook()
    book.use("k", "a")
    book.leave("a")
    assert book.take_drops() == (Drop(0, 0),), "a fetch on its way is called off"
    assert book.use("k", "b") == 1
    book.landed(0)
    assert not book.is_ready("k")
    book.landed(1)
    assert book.is_ready("k")


def test_a_failure_fails_those_who_wait_and_the_next_one_tries_again() -> None:
    book = LandingBook()
    book.use("k", "a")
    book.failed(0, "gone")
    landing = book.get("k")
    assert landing is not None
    assert (landing.state, landing.reason) == (LandingState.FAILED, "gone")
    assert book.use("k", "a") is None
    assert book.use("k", "b") == 1


def test_a_failure_that_nobody_waits_for_is_forgotten_without_a_drop() -> None:
    book = LandingBook()
    book.use("k", "a")
    book.failed(0, "gone")
    book.leave("a")
    assert book.get("k") is None
    assert book.take_drops() == ()


def test_what_the_agents_held_already_is_ready_at_once() -> None:
    book = LandingBook()
    number = book.new_number()
    book.adopt(number, "k", "a")
    assert book.is_ready("k")
    book.leave("a")
    assert book.take_drops() == (Drop(number, 0),)


def test_a_second_pin_on_what_is_here_or_coming_is_given_back() -> None:
    book = LandingBook()
    book.use("k", "a")
    book.adopt(7, "k", "b")
    assert book.take_drops() == (Drop(7, 0),)
    book.leave("a")
    assert book.take_drops() == (), "b uses what a has fetched"


def test_what_is_adopted_after_a_failure_serves_those_who_had_failed() -> None:
    book = LandingBook()
    book.use("k", "a")
    book.failed(0, "gone")
    book.adopt(7, "k", "b")
    assert book.is_ready("k")
    book.leave("b")
    assert book.take_drops() == ()
    book.leave("a")
    assert book.take_drops() == (Drop(7, 0),)
