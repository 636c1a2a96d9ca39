# SPDX-License-Identifier: Apache-2.0
"""Our histograms read like those of the library."""

from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, Histogram, generate_latest

from vllm_epd.router.distribution import Distributions

BOUNDS = (0.1, 0.5, 1.0, 10.0)
VALUES = st.one_of(st.sampled_from(BOUNDS), st.floats(0.0, 100.0))


def shown(registry: CollectorRegistry) -> list[str]:
    """The text without the time at which the library's were made."""
    return [line for line in generate_latest(registry).decode().splitlines() if "_created" not in line]


@given(st.lists(st.tuples(st.sampled_from(["a", "b"]), VALUES)))
def test_what_is_shown_is_what_the_library_shows(observed):
    ours, theirs = CollectorRegistry(), CollectorRegistry()
    found = Distributions("some_seconds", "Some.", BOUNDS, ["stage"])
    ours.register(found)
    other = Histogram("some_seconds", "Some.", ["stage"], buckets=BOUNDS, registry=theirs)
    for label, value in observed:
        found.labelled(label).observe(value)
        other.labels(label).observe(value)
    assert shown(ours) == shown(theirs)


def test_without_labels_it_is_shown_before_anything_is_observed():
    ours, theirs = CollectorRegistry(), CollectorRegistry()
    ours.register(Distributions("some_seconds", "Some.", BOUNDS))
    Histogram("some_seconds", "Some.", buckets=BOUNDS, registry=theirs)
    assert shown(ours) == shown(theirs)
