# SPDX-License-Identifier: Apache-2.0
"""A circuit breaker opens, lets one probe through, and closes."""

from vllm_epd.router.breaker import COOLDOWN_S, FAILURES, LONGEST_S, Breaker, PairBreakers


def opened(clock):
    breaker = Breaker(clock)
    for _ in range(FAILURES):
        breaker.failed()
    return breaker


def test_a_few_failures_are_let_pass(clock):
    breaker = Breaker(clock)
    for _ in range(FAILURES - 1):
        breaker.failed()
    assert breaker.allows


def test_failures_in_a_row_open_it_until_the_cooldown_is_over(clock):
    breaker = opened(clock)
    assert not breaker.allows
    clock.now += COOLDOWN_S
    assert breaker.allows


def test_only_failures_in_a_row_count(clock):
    breaker = Breaker(clock)
    for _ in range(FAILURES):
        breaker.failed()
        breaker.succeeded()
    assert breaker.allows


def test_one_probe_is_let_through_at_a_time(clock):
    breaker = opened(clock)
    clock.now += COOLDOWN_S
    breaker.tried()
    assert not breaker.allows
    breaker.succeeded()
    assert breaker.allows


def test_each_failed_probe_doubles_the_cooldown_up_to_a_limit(clock):
    breaker, waited = opened(clock), []
    for _ in range(8):
        start = clock.now
        while not breaker.allows:
            clock.now += COOLDOWN_S / 4
        waited.append(clock.now - start)
        breaker.tried()
        breaker.failed()
    assert waited == [min(COOLDOWN_S * 2**probe, LONGEST_S) for probe in range(8)]


def test_a_closed_breaker_starts_with_the_shortest_cooldown_again(clock):
    breaker = opened(clock)
    for _ in range(4):
        breaker.failed()
    breaker.succeeded()
    for _ in range(FAILURES):
        breaker.failed()
    clock.now += COOLDOWN_S
    assert breaker.allows


def test_a_pair_that_fails_is_cut_and_each_of_it_goes_on_with_others(clock):
    pairs = PairBreakers(clock)
    for _ in range(FAILURES):
        pairs.failed("p", "d")
    assert not pairs.allows("p", "d")
    assert pairs.allows("p", "other")
    assert pairs.allows("other", "d")
    pairs.succeeded("p", "d")
    assert pairs.allows("p", "d")


def test_pairs_of_which_one_is_gone_are_forgotten(clock):
    pairs = PairBreakers(clock)
    for _ in range(FAILURES):
        pairs.failed("p", "d")
        pairs.failed("p", "gone")
    pairs.keep(("p", "d").__contains__)
    assert not pairs.allows("p", "d")
    assert pairs.allows("p", "gone")
