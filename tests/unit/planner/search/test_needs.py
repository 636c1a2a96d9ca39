# SPDX-License-Identifier: Apache-2.0
import pytest

from vllm_epd.errors import ConfigError
from vllm_epd.planner.fleet import Fleet, Limits
from vllm_epd.planner.profile.store import load_profile
from vllm_epd.planner.search.demand import sizes
from vllm_epd.planner.search.ground import prepare
from vllm_epd.planner.search.needs import Largest, check_context, shortage_of
from vllm_epd.planner.simulate.run import simulate
from vllm_epd.planner.workload.requests import Item, Kind, Request
from vllm_epd.topology import Topology
from vllm_epd.types import RoleSet

BIG = "internvl2-26b@a100-80gb"
BASE = Fleet(Topology(()))
LIMITS = Limits()


def _request(images):
    return Request(0, 0.0, 100, 50, (Item(Kind.IMAGE, 4032, 3024),) * images)


def _lacking(profile, letters, limits=LIMITS, images=1):
    largest = Largest.of([sizes(profile, _request(images))])
    return shortage_of(profile, BASE, largest)(RoleSet.from_letters(letters), limits)


def test_what_fits_lacks_nothing_and_is_served():
    profile, limits = load_profile(BIG), Limits(encode_items=1, batched_tokens=4096)
    assert all(_lacking(profile, letters, limits) is None for letters in ("E", "P", "D"))
    outcome = simulate(Fleet(Topology.parse("1E1P1D"), limits), profile, [_request(1)])
    assert len(outcome.served) == 1


def test_weights_that_do_not_fit(problem):
    with pytest.raises(
        ConfigError,
        match=r"no fleet of 4 GPUs has the memory: .*P: the language model's [\d.]+ GB of weights, with [\d.]+ GB for"
        r" the runtime, do not fit 0.9 of 24.0 GB: [\d.]+ GB are lacking",
    ):
        prepare(problem(BIG, (10, 1), 4, memory=24 * 10**9, images=1))


def test_an_encoder_still_fits_where_the_language_model_does_not(problem):
    profile = problem(BIG, (10, 1), 4, memory=24 * 10**9, images=1).profile
    assert _lacking(profile, "E", Limits(encode_items=1)) is None
    assert "the encoder's" in _lacking(profile, "EPD")


def test_batch_of_the_largest_items_has_to_fit():
    profile = load_profile(BIG)
    many = Limits(encode_items=10_000)
    assert "a batch of 10000 of the largest item needs" in _lacking(profile, "E", many)
    assert _lacking(profile, "D", many) is None


def test_largest_request_has_to_fit_the_cache(problem):
    roomy = load_profile("minicpm-v-2.6@a100-80gb")
    tight = problem("minicpm-v-2.6@a100-80gb", (10, 1), 4, memory=19 * 10**9).profile
    limits = Limits(batched_tokens=256, decode_sequences=1)
    assert _lacking(roomy, "D", limits, images=30) is None
    lacking = _lacking(tight, "D", limits, images=30)
    assert lacking.startswith("the largest request needs ")
    assert lacking.endswith(" are lacking")


def test_longer_than_the_model_takes(problem):
    profile = load_profile(BIG)
    with pytest.raises(ConfigError, match=r"takes [\d,]+ tokens of context, .* too many"):
        check_context(profile, Largest.of([sizes(profile, _request(30))]))
    with pytest.raises(ConfigError, match="tokens of context"):
        prepare(problem(BIG, (100, 1), 4, images=30, image_sizes=("4032x3024",)))


def test_contradictory_targets(problem):
    with pytest.raises(ConfigError, match=r"a TTFT of 0.01 s cannot be kept for 90% .* they need [\d.]+ s"):
        prepare(problem(BIG, (0.01, 1), 4, images=1))
    with pytest.raises(ConfigError, match="a TPOT of 0.0001 s cannot be kept"):
        prepare(problem(BIG, (10, 0.0001), 4, images=1))
