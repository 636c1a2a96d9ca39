# SPDX-License-Identifier: Apache-2.0
"""vLLM's embedding-connector interface, as a thin shell around a scheduler half and a worker half."""

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from vllm.distributed.ec_transfer.ec_connector.base import (
    ECConnectorBase,
    ECConnectorMetadata,
    ECConnectorRole,
)
from vllm.distributed.ec_transfer.ec_connector.utils import PlaceholderMetadataResolver

from vllm_epd.compat.embeddings import embedding_row_bytes
from vllm_epd.compat.fingerprint import fingerprint_of
from vllm_epd.compat.metadata import describe_items
from vllm_epd.compat.weights import log_saved_weights
from vllm_epd.connectors.desk import Desk
from vllm_epd.connectors.ec_scheduler import ConsumerHalf, ProducerHalf, wants_description
from vllm_epd.connectors.link import AgentLink
from vllm_epd.connectors.metadata import StepMetadata
from vllm_epd.connectors.settings import EmbeddingSettings

if TYPE_CHECKING:
    from vllm.config import VllmConfig
    from vllm.v1.core.sched.output import SchedulerOutput
    from vllm.v1.request import Request

    from vllm_epd.connectors.ec_worker import WorkerHalf


@dataclass
class EPDConnectorMetadata(ECConnectorMetadata):
    """vLLM's envelope for one step's orders."""

    step: StepMetadata


class EPDEmbeddingConnector(ECConnectorBase):
    """Offers embeddings from a pool and pulls them, asynchronously to the engine's steps."""

    def __init__(self, vllm_config: "VllmConfig", role: ECConnectorRole) -> None:
        super().__init__(vllm_config=vllm_config, role=role)
        config = vllm_config.ec_transfer_config
        assert config is not None
        self._settings = EmbeddingSettings.from_extra_config(config.ec_connector_extra_config)
        self._producer: ProducerHalf | None = None
        self._consumer: ConsumerHalf | None = None
        self._desk: Desk | None = None
        self._worker: WorkerHalf | None = None
        if role is ECConnectorRole.SCHEDULER:
            self._make_scheduler_halves(vllm_config)
        else:
            self._make_worker_half(vllm_config)

    def _make_scheduler_halves(self, vllm_config: "VllmConfig") -> None:
        settings, parallel = self._settings, vllm_config.parallel_config
        rank, tp_size = parallel.data_parallel_index, parallel.tensor_parallel_size
        addresses = [settings.command_address(rank, tp) for tp in range(tp_size)]
        desk = self._desk = Desk(AgentLink(addresses))
        self._resolver = PlaceholderMetadataResolver(vllm_config.model_config)
        if self.is_producer:
            # Only the first rank holds what was encoded here, and only an encoder alone has no use for it elsewhere.
            reuse = tp_size == 1 or not self.is_consumer
            row_bytes = embedding_row_bytes(vllm_config.model_config)
            self._producer = ProducerHalf(desk, settings.epoch, rank, row_bytes, reuse=reuse)
        if self.is_consumer:
            self._consumer = ConsumerHalf(desk, settings.pool_bytes, tower=settings.tower)

    def _make_worker_half(self, vllm_config: "VllmConfig") -> None:
        from vllm.distributed.parallel_state import get_pp_group, get_tensor_model_parallel_rank
        from vllm.platforms import current_platform

        from vllm_epd.compat.nixl import quiet_progress_thread
        from vllm_epd.connectors.ec_worker import WorkerHalf
        from vllm_epd.transfer.agent import TransferAgent

        quiet_progress_thread()
        if not get_pp_group().is_first_rank:
            return
        settings, tp_rank = self._settings, get_tensor_model_parallel_rank()
        dp_rank = vllm_config.parallel_config.data_parallel_index
        offers = self.is_producer and tp_rank == 0
        device = torch.device(current_platform.device_type)
        if device.type == "cuda":
            # By its index: the agent's thread has no current device of its own.
            device = torch.device("cuda", torch.cuda.current_device())
        model = vllm_config.model_config
        agent = TransferAgent(
            settings.agent_config(
                fingerprint_of(vllm_config),
                dp_rank,
                tp_rank,
                device,
                offers=offers,
                packing=settings.packing(embedding_row_bytes(model), model.dtype.itemsize),
            )
        )
        self._worker = WorkerHalf(agent, settings.lease_s, device, offers=offers)

    # Worker side.

    def start_worker_services(self) -> None:
        if self._worker is not None:
            log_saved_weights(self._vllm_config, tower=self._settings.tower, language_model=self.is_consumer)

    def start_load_caches(self, encoder_cache: dict[str, torch.Tensor], **kwargs: Any) -> None:
        if self._worker is not None:
            self._worker.load(encoder_cache, self._step())

    def start_save_caches(self, **kwargs: Any) -> None:
        if self._worker is None:
            return
        if not self.is_consumer:  # vLLM asks only consumers to load
            self._worker.load_own(kwargs["encoder_cache"], self._step())
        self._worker.offer_cached(kwargs["encoder_cache"], self._step())

    def save_caches(self, encoder_cache: dict[str, torch.Tensor], mm_hash: str, **kwargs: Any) -> None:
        if self._worker is not None and self.is_producer and self._connector_metadata is not None:
            self._worker.offer_encoded(encoder_cache, mm_hash, self._step())

    # Scheduler side.

    def has_cache_item(self, identifier: str) -> bool:
        return self._own_desk.book.is_ready(identifier)

    def ensure_cache_available(self, request: "Request", num_computed_tokens: int) -> bool:
        look = partial(self._available, request, num_computed_tokens)
        return bool(self._own_desk.collect_for(request.request_id, look))

    def _available(self, request: "Request", num_computed_tokens: int) -> bool | None:
        """Whether `request` may be served; None while what it needs is on its way."""
        if self._own_desk.has_given_up(request.request_id):
            return False
        if self._producer is not None and not self._producer.available(request):
            return None
        if self._consumer is None or self._consumer.available(request, num_computed_tokens):
            return True
        return False if self._own_desk.has_given_up(request.request_id) else None

    def take_unavailable_requests(self) -> set[str]:
        return self._own_desk.take_unavailable()

    def update_state_after_alloc(self, request: "Request", index: int) -> None:
        if self._own_desk.book.is_ready(request.mm_features[index].identifier):
            self._own_desk.book.load(request.mm_features[index].identifier)

    def build_connector_meta(self, scheduler_output: "SchedulerOutput") -> EPDConnectorMetadata:
        offers = () if self._producer is None else self._producer.step_offers(scheduler_output.num_scheduled_tokens)
        desk = self._own_desk
        return EPDConnectorMetadata(StepMetadata(desk.take_loads(), desk.take_merges(), offers))

    def request_finished(self, request: "Request") -> tuple[bool, dict[str, Any] | None]:
        if self._consumer is not None:
            self._consumer.finish(request)
        handles = {} if self._producer is None else self._producer.finish(request)
        self._own_desk.leave(request.request_id)
        if not handles and not (self.is_producer and wants_description(request)):
            return False, None
        return False, self._describe(request, handles)

    def shutdown(self) -> None:
        if self._desk is not None:
            self._desk.close()
        if self._worker is not None:
            self._worker.close()

    def _describe(self, request: "Request", handles: dict[str, dict[str, Any]]) -> dict[str, Any]:
        items = describe_items(request.mm_features, self._resolver)
        return {key: {**item, **handles.get(key, {})} for key, item in items.items()}

    @property
    def _own_desk(self) -> Desk:
        assert self._desk is not None, "a worker has no scheduler half"
        return self._desk

    def _step(self) -> StepMetadata:
        metadata = self._get_connector_metadata()
        assert isinstance(metadata, EPDConnectorMetadata)
        return metadata.step
