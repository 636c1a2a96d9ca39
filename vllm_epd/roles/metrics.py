# SPDX-License-Identifier: Apache-2.0
"""The numbers of an instance's pools on vLLM's own `/metrics`."""

from collections.abc import Iterator, Sequence

import zmq
from prometheus_client import REGISTRY
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from vllm_epd.errors import TransferError
from vllm_epd.transfer import wire

ASK_MS = 500
LABELS = ("model_name", "engine", "rank")
"""Of them, `engine` is the data-parallel rank, and `rank` the tensor-parallel one."""
EMBEDDINGS, KV = "embedding_pool", "kv_pool"
"""The pools of an instance, as its metrics call them."""

GAUGES = {
    "capacity_bytes": "Size of the pool.",
    "free_bytes": "Bytes of the pool that belong to no item.",
    "items": "Items in the pool: embeddings, or chunks of KV caches.",
    "pinned": "Items that a lease, a reader or a waiting request holds.",
    "pinned_bytes": "Size of the items that a lease, a reader or a waiting request holds.",
    "codec_active": "1 while embeddings are encoded by --epd-embedding-codec.",
    "codec_refused": "1 once --epd-embedding-codec has been refused.",
    "codec_error": "Largest error of the codec in a row of the first embeddings, relative to its norm.",
}
COUNTERS = {
    "hits": "Items wanted that the pool held already.",
    "encoded": "Items put into the pool by this instance's own model.",
    "raw_bytes": "Size of the items put into the pool by this instance's own model, before the codec.",
    "stored_bytes": "Size of the items put into the pool by this instance's own model, after the codec.",
    "fetched": "Items brought into the pool from other instances.",
    "fetched_bytes": "Size of the items brought into the pool from other instances.",
    "evicted": "Items dropped from the pool to make room.",
    "expired": "Leases and reads that ran out.",
    "refused": "Peers that were not let in.",
}


class PoolCollector(Collector):
    """Asks the agents when it is asked."""

    def __init__(self, pool: str, addresses: Sequence[Sequence[str]], model: str) -> None:
        """Report on the agents at `addresses`, by data-parallel and then by tensor-parallel rank."""
        self._pool = pool
        self._addresses = {
            (str(dp), str(tp)): address for dp, ranks in enumerate(addresses) for tp, address in enumerate(ranks)
        }
        self._model = model

    def describe(self) -> list[Metric]:
        """Nothing in advance: the agents may not run yet."""
        return []

    def collect(self) -> Iterator[Metric]:
        """One sample per metric and agent that answers."""
        states = {ranks: _ask(address) for ranks, address in self._addresses.items()}
        for names, family in ((GAUGES, GaugeMetricFamily), (COUNTERS, CounterMetricFamily)):
            for name, text in names.items():
                metric = family(f"vllm_epd:{self._pool}_{name}", text, labels=LABELS)
                for ranks, state in states.items():
                    if state is not None:
                        metric.add_metric((self._model, *ranks), getattr(state, name))
                yield metric


def publish_pool_metrics(pool: str, addresses: Sequence[Sequence[str]], model: str) -> None:
    """Add the pools of one kind behind `addresses` to this process's metrics; once."""
    REGISTRY.register(PoolCollector(pool, addresses, model))


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
