# SPDX-License-Identifier: Apache-2.0
"""The numbers of several workers as those of one router, told apart by a label. Pure."""

from collections.abc import Iterator, Mapping

from prometheus_client import Metric
from prometheus_client.exposition import generate_latest
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector, CollectorRegistry

LABEL = "worker"


def together(texts: Mapping[int, str]) -> bytes:
    """One text of several in Prometheus' format, by the number of their worker.

    Not summed: the counters of a worker begin anew when it is replaced, and each series has to show that by itself.
    """
    registry = CollectorRegistry()
    registry.register(_Together(texts))
    return generate_latest(registry)


class _Together(Collector):
    def __init__(self, texts: Mapping[int, str]) -> None:
        self._texts = texts

    def collect(self) -> Iterator[Metric]:
        families: dict[str, Metric] = {}
        for number, text in sorted(self._texts.items()):
            for family in text_string_to_metric_families(text):
                merged = families.setdefault(family.name, Metric(family.name, family.documentation, family.type))
                for sample in family.samples:
                    merged.add_sample(sample.name, {**sample.labels, LABEL: str(number)}, sample.value)
        yield from families.values()
