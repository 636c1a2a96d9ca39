# SPDX-License-Identifier: Apache-2.0
"""The worker half of the embedding connector: tensors between the model's encoder cache and the agent."""

import logging
from collections.abc import MutableMapping

import torch

from vllm_epd.connectors.metadata import Load, Offer, StepMetadata
from vllm_epd.errors import PoolError
from vllm_epd.transfer.agent import TransferAgent

logger = logging.getLogger(__name__)

EncoderCache = MutableMapping[str, torch.Tensor]


class WorkerHalf:
    """Carries out one step's orders. All calls come from the model's thread, and none of them waits."""

    def __init__(self, agent: TransferAgent, lease_s: float, device: torch.device, *, offers: bool) -> None:
        """Load from and offer into `agent`'s pool.

        Args:
            agent: of this worker.
            lease_s: how long what is offered waits for its consumer.
            device: of the model.
            offers: whether this worker is the one of its instance that offers.
        """
        self._agent = agent
        self._lease_s = lease_s
        self._device = device
        self._offers = offers

    def load(self, cache: EncoderCache, step: StepMetadata) -> None:
        """Bring what is here into the encoder cache."""
        for load in step.loads:
            cache[load.key] = self._load(load)
        for merge in step.merges:
            cache[merge.key] = torch.cat([self._load(part) for part in merge.parts])

    def load_own(self, cache: EncoderCache, step: StepMetadata) -> None:
        """Bring what the pool holds into the encoder cache of an instance that only encodes."""
        if self._offers:
            self.load(cache, step)

    def offer_cached(self, cache: EncoderCache, step: StepMetadata) -> None:
        """Offer what this step's requests need offered and what an earlier step has encoded."""
        if self._offers:
            for offer in step.offers:
                self._offer(cache, offer)

    def offer_encoded(self, cache: EncoderCache, key: str, step: StepMetadata) -> None:
        """Offer `key`, just encoded, to everyone in this step who wants it."""
        if self._offers:
            for offer in step.offers:
                if offer.key == key:
                    self._offer(cache, offer)

    def close(self) -> None:
        """Stop the agent."""
        self._agent.close()

    def _load(self, load: Load) -> torch.Tensor:
        return self._agent.load(load.landing, load.key, self._device)

    def _offer(self, cache: EncoderCache, offer: Offer) -> None:
        store = self._agent.store
        try:
            if store.lease(offer.key, offer.lease, self._lease_s) is None and offer.key in cache:
                store.put(offer.key, cache[offer.key], offer.nbytes)
                store.lease(offer.key, offer.lease, self._lease_s)
        except PoolError as error:
            logger.error("embedding %s is not offered as %s: %s", offer.key, offer.lease, error)
