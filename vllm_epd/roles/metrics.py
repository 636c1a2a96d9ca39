# SPDX-License-Identifier: Apache-2.0
"""The numbers of an instance's embedding pools on vLLM's own `/metrics`."""

from collections.abc import Iterator, Sequence

import zmq
from prometheus_client import REGISTRY
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from vllm_epd.errors import TransferError
from vllm_epd.transfer import wire

ASK_MS = 500
LABELS = ("model_name", "engine")
GAUGES = {
    "capacity_bytes": "Size of the embedding pool.",
    "free_bytes": "Bytes of the embedding pool that belong to no embedding.",
    "items": "Embeddings in the pool.",
    "pinned": "Embeddings that a lease, a reader or a waiting request holds.",
    "pinned_bytes": "Size of the embeddings that a lease, a reader or a waiting request holds.",
}
COUNTERS = {
    "hits": "Embeddings wanted that the pool held already.",
    "encoded": "Embeddings put into the pool by this instance's encoder.",
    "fetched": "Embeddings brought into the pool from other instances.",
    "fetched_bytes": "Size of the embeddings brought into the pool from other instances.",
    "evicted": "Embeddings dropped from the pool to make room.",
    "expired": "Leases and reads that ran out.",
    "refused": "Peers that were not let in.",
}


class PoolCollector(Collector):
    """Asks the agents when it is asked."""

    def __init__(self, addresses: Sequence[str], model: str) -> None:
        """Report on the agents at `addresses`, in order of data-parallel rank."""
        self._addresses = list(addresses)
        self._model = model

    def describe(self) -> list[Metric]:
        """Nothing in advance: the agents may not run yet."""
        return []

    def collect(self) -> Iterator[Metric]:
        """One sample per metric and agent that answers."""
        states = [(str(rank), _ask(address)) for rank, address in enumerate(self._addresses)]
        for names, family in ((GAUGES, GaugeMetricFamily), (COUNTERS, CounterMetricFamily)):
            for name, text in names.items():
                metric = family(f"vllm_epd:embedding_pool_{name}", text, labels=LABELS)
                for rank, state in states:
                    if state is not None:
                        metric.add_metric((self._model, rank), getattr(state, name))
                yield metric


def publish_pool_metrics(addresses: Sequence[str], model: str) -> None:
    """Add the pools behind `addresses` to this process's metrics; once."""
    REGISTRY.register(PoolCollector(addresses, model))


def _ask(address: str) -> wire.PoolState | None:
    with zmq.Context() as context, context.socket(zmq.DEALER) as socket:
        socket.setsockopt(zmq.LINGER, 0)
        socket.connect(address)
        socket.send(wire.encode(wire.AskPool()))
        if not socket.poll(ASK_MS):
            return None
        try:
            report = wire.decode_report(socket.recv())
        except TransferError:
            return None
    return report if isinstance(report, wire.PoolState) else None
