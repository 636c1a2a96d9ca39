# SPDX-License-Identifier: Apache-2.0
"""Histograms for Prometheus, for one thread: without the library's lock, and its look at one bound after the other."""

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from itertools import accumulate

from prometheus_client.metrics_core import HistogramMetricFamily
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString


class Distribution:
    """How often values have come to lie in each bucket."""

    __slots__ = ("_bounds", "counts", "total")

    def __init__(self, bounds: Sequence[float]) -> None:
        self._bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.total = 0.0

    def observe(self, value: float) -> None:
        """Count a value: in the first bucket whose bound it does not exceed."""
        self.counts[bisect_left(self._bounds, value)] += 1
        self.total += value


class Distributions(Collector):
    """All of one name, by their labels."""

    def __init__(self, name: str, help_text: str, bounds: Sequence[float], labels: Sequence[str] = ()) -> None:
        """Collect under `name`; without labels there is one, from the beginning."""
        self._about = name, help_text
        self._bounds = tuple(bounds)
        self._labels = tuple(labels)
        self._by_label: dict[tuple[str, ...], Distribution] = {}
        if not labels:
            self.labelled()

    def labelled(self, *values: str) -> Distribution:
        """That of these values of the labels."""
        return self._by_label.setdefault(values, Distribution(self._bounds))

    def collect(self) -> Iterator[HistogramMetricFamily]:
        """As they are now."""
        family = HistogramMetricFamily(*self._about, labels=self._labels)
        bounds = [floatToGoString(bound) for bound in (*self._bounds, float("inf"))]  # type: ignore[no-untyped-call]
        for values, found in self._by_label.items():
            buckets = list(zip(bounds, map(float, accumulate(found.counts)), strict=True))
            family.add_metric(values, buckets, found.total)
        yield family
