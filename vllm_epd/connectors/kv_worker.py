# SPDX-License-Identifier: Apache-2.0
"""The worker half of the KV connector: blocks between the model's KV caches and the agent's pool."""

import logging
from collections.abc import Sequence

import torch

from vllm_epd import ops
from vllm_epd.connectors.kv_metadata import KVStep, LoadBlocks, SaveBlocks
from vllm_epd.errors import PoolError
from vllm_epd.transfer.agent import TransferAgent
from vllm_epd.transfer.items import StoredItem, spread

logger = logging.getLogger(__name__)


class KVWorkerHalf:
    """Carries out one step's orders. All calls come from the model's thread, and none of them waits."""

    def __init__(self, agent: TransferAgent, lease_s: float, planes: Sequence[torch.Tensor]) -> None:
        """Move blocks between `planes`, see `kv_layout`, and `agent`'s pool."""
        self._agent = agent
        self._lease_s = lease_s
        self._planes = ops.Planes(planes)
        self._on_device = self._planes.device.type == "cuda"

    def load(self, step: KVStep) -> None:
        """Bring what is here into the model's caches, before the model runs."""
        for order in step.loads:
            self._load(order)

    def save(self, step: KVStep) -> None:
        """Put what the model has just computed into the pool."""
        for order in step.saves:
            self._save(order)

    def close(self) -> None:
        """Stop the agent."""
        self._agent.close()

    def _load(self, order: LoadBlocks) -> None:
        def scatter(item: StoredItem, pieces: Sequence[torch.Tensor]) -> None:
            chunk = pieces[0] if len(pieces) == 1 else torch.cat(list(pieces))
            wanted = chunk.view(-1, self._planes.row_bytes)[order.skip : order.skip + len(order.block_ids)].flatten()
            ops.scatter_rows(wanted.to(self._planes.device, non_blocking=True), self._planes, order.block_ids)

        self._agent.read(order.landing, order.key, scatter, on_device=self._on_device)

    def _save(self, order: SaveBlocks) -> None:
        def gather(pieces: Sequence[torch.Tensor]) -> None:
            if len(pieces) == 1 and pieces[0].device == self._planes.device:
                ops.gather_rows(self._planes, order.block_ids, pieces[0])
                return
            chunk = torch.empty(shape[0] * shape[1], dtype=torch.uint8, device=self._planes.device)
            ops.gather_rows(self._planes, order.block_ids, chunk)
            spread(chunk, pieces)

        shape = len(order.block_ids), self._planes.row_bytes
        store = self._agent.store
        try:
            store.fill(order.key, shape[0] * shape[1], shape, torch.uint8, gather, on_device=self._on_device)
            store.lease(order.key, order.lease, self._lease_s)
        except PoolError as error:
            logger.error("KV chunk %s is not offered as %s: %s", order.key, order.lease, error)
