# SPDX-License-Identifier: Apache-2.0
"""The worker half of the embedding connector: tensors between the model's encoder cache and the agent."""

import logging
from collections.abc import MutableMapping

import torch

from vllm_epd.connectors.metadata import StepMetadata
from vllm_epd.errors import PoolError
from vllm_epd.transfer.agent import TransferAgent

logger = logging.getLogger(__name__)

EncoderCache = MutableMapping[str, torch.Tensor]


class WorkerHalf:
    """Carries out one step's orders. All calls come from the model's thread."""

    def __init__(self, agent: TransferAgent, lease_s: float, device: torch.device) -> None:
        """Offer into `agent`'s store under leases of `lease_s`; land embeddings on `device`."""
        self._agent = agent
        self._lease_s = lease_s
        self._device = device

    def load(self, cache: EncoderCache, step: StepMetadata) -> None:
        """Bring what has landed into the encoder cache, then forget what nobody needs."""
        for load in step.loads:
            if load.key not in cache:
                cache[load.key] = self._agent.landed(load.landing).to(self._device, non_blocking=True)
        for landing in step.drops:
            self._agent.drop(landing)

    def offer_cached(self, cache: EncoderCache, step: StepMetadata) -> None:
        """Offer what this step's requests need offered and what an earlier step has encoded."""
        for offer in step.offers:
            if self._agent.store.lease(offer.key, offer.lease, self._lease_s):
                continue
            if offer.key in cache:
                self._put(cache[offer.key], offer.key, offer.lease)

    def offer_encoded(self, cache: EncoderCache, key: str, step: StepMetadata) -> None:
        """Offer `key`, just encoded, to everyone in this step who wants it."""
        for offer in step.offers:
            if offer.key == key:
                self._put(cache[key], key, offer.lease)

    def close(self) -> None:
        """Stop the agent."""
        self._agent.close()

    def _put(self, tensor: torch.Tensor, key: str, lease: str) -> None:
        try:
            self._agent.store.put(key, tensor, lease, self._lease_s, wait_s=self._lease_s)
        except PoolError as error:
            logger.error("embedding %s is not offered: %s", key, error)
