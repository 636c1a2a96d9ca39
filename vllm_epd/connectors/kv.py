# SPDX-License-Identifier: Apache-2.0
"""vLLM's KV-connector interface, as a thin shell around scheduler halves and a worker half."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from vllm.distributed.kv_transfer.kv_connector.v1.base import (
    KVConnectorBase_V1,
    KVConnectorMetadata,
    KVConnectorRole,
)

from vllm_epd.compat.fingerprint import fingerprint_of
from vllm_epd.connectors.desk import Desk
from vllm_epd.connectors.kv_layout import ELSEWHERE, planes, row_bytes
from vllm_epd.connectors.kv_metadata import KVStep
from vllm_epd.connectors.kv_scheduler import KVConsumerHalf, KVProducerHalf
from vllm_epd.connectors.kv_shape import chunk_shape, content, sized
from vllm_epd.connectors.link import AgentLink
from vllm_epd.connectors.settings import KVSettings
from vllm_epd.errors import ConfigError
from vllm_epd.transfer.shard import Shard

if TYPE_CHECKING:
    from vllm.config import VllmConfig
    from vllm.forward_context import ForwardContext
    from vllm.v1.attention.backend import AttentionMetadata
    from vllm.v1.core.kv_cache_manager import KVCacheBlocks
    from vllm.v1.core.sched.output import SchedulerOutput
    from vllm.v1.kv_cache_interface import KVCacheConfig
    from vllm.v1.request import Request

    from vllm_epd.connectors.kv_worker import KVWorkerHalf


@dataclass
class EPDKVConnectorMetadata(KVConnectorMetadata):
    """vLLM's envelope for one step's orders."""

    step: KVStep


class EPDKVConnector(KVConnectorBase_V1):
    """Hands the KV caches of prompts from prefill to decode, in chunks that travel while prefill goes on.

    Each tensor-parallel rank has an agent and a pool of its own, and hands its part over to the same rank of its peer.
    """

    def __init__(self, vllm_config: "VllmConfig", role: KVConnectorRole, kv_cache_config: "KVCacheConfig") -> None:
        super().__init__(vllm_config, role, kv_cache_config)
        config = vllm_config.kv_transfer_config
        assert config is not None
        self._shape = chunk_shape(vllm_config, kv_cache_config)
        settings = KVSettings.from_extra_config(config.kv_connector_extra_config)
        self._settings = sized(settings, self._shape, vllm_config.model_config.max_model_len)
        parallel = vllm_config.parallel_config
        self._rank, self._shards = parallel.data_parallel_index, parallel.tensor_parallel_size
        self._offers = config.is_kv_producer
        self._producer: KVProducerHalf | None = None
        self._consumer: KVConsumerHalf | None = None
        self._desk: Desk | None = None
        self._worker: KVWorkerHalf | None = None
        if role is KVConnectorRole.SCHEDULER:
            addresses = [self._settings.command_address(self._rank, shard) for shard in range(self._shards)]
            desk = self._desk = Desk(AgentLink(addresses, sharded=True))
            if self._offers:
                self._producer = KVProducerHalf(desk, self._settings.epoch, self._rank, self._shape)
            else:
                self._consumer = KVConsumerHalf(desk, self._shape)

    # Worker side.

    def register_kv_caches(self, kv_caches: dict[str, torch.Tensor]) -> None:
        from vllm.distributed.parallel_state import get_tensor_model_parallel_rank

        from vllm_epd.connectors.kv_worker import KVWorkerHalf
        from vllm_epd.transfer.agent import TransferAgent

        all_planes = planes(kv_caches.values(), self._kv_cache_config.num_blocks)
        if row_bytes(all_planes) != self._shape.block_bytes:
            raise ConfigError(
                f"the KV caches have {row_bytes(all_planes)} bytes in a block, {self._shape.block_bytes} were planned;"
                f" {ELSEWHERE}"
            )
        dtype = str(self._vllm_config.cache_config.cache_dtype)
        tp_rank = get_tensor_model_parallel_rank()
        agent = TransferAgent(
            self._settings.agent_config(
                fingerprint_of(self._vllm_config),
                self._rank,
                tp_rank,
                all_planes[0].device,
                offers=self._offers,
                content=content(self._shape, dtype),
                shard=Shard(tp_rank, self._shards),
            )
        )
        self._worker = KVWorkerHalf(agent, self._settings.lease_s, all_planes)

    def start_load_kv(self, forward_context: "ForwardContext", **kwargs: Any) -> None:
        if self._worker is not None:
            self._worker.load(self._step())

    def wait_for_layer_load(self, layer_name: str) -> None:
        """All layers are loaded before the model runs."""

    def save_kv_layer(
        self, layer_name: str, kv_layer: torch.Tensor, attn_metadata: "AttentionMetadata", **kwargs: Any
    ) -> None:
        """All layers are saved together once the model has run."""

    def wait_for_save(self) -> None:
        if self._worker is not None:
            self._worker.save(self._step())

    # Scheduler side.

    def get_num_new_matched_tokens(self, request: "Request", num_computed_tokens: int) -> tuple[int | None, bool]:
        look = partial(self._matched, request, num_computed_tokens)
        return self._own_desk.collect_for(request.request_id, look), False

    def _matched(self, request: "Request", num_computed_tokens: int) -> int | None:
        if self._producer is not None:
            return 0 if self._producer.available(request) else None
        assert self._consumer is not None
        return self._consumer.matched(request, num_computed_tokens)

    def update_state_after_alloc(self, request: "Request", blocks: "KVCacheBlocks", num_external_tokens: int) -> None:
        if self._consumer is not None:
            self._consumer.allocated(request, blocks.get_block_ids()[0], num_external_tokens)

    def build_connector_meta(self, scheduler_output: "SchedulerOutput") -> EPDKVConnectorMetadata:
        if self._producer is not None:
            saves = self._producer.step_saves(scheduler_output.num_scheduled_tokens, self._block_ids)
            return EPDKVConnectorMetadata(KVStep(saves=saves))
        assert self._consumer is not None
        return EPDKVConnectorMetadata(KVStep(loads=self._consumer.step_loads()))

    def request_finished(self, request: "Request", block_ids: list[int]) -> tuple[bool, dict[str, Any] | None]:
        if self._producer is not None:
            return False, self._producer.finish(request)
        assert self._consumer is not None
        self._consumer.finish(request)
        return False, None

    def shutdown(self) -> None:
        if self._desk is not None:
            self._desk.close()
        if self._worker is not None:
            self._worker.close()

    def _block_ids(self, request_id: str) -> Sequence[int]:
        assert self._kv_cache_manager is not None
        ids: Sequence[int] = self._kv_cache_manager.get_block_ids(request_id)[0]
        return ids

    @property
    def _own_desk(self) -> Desk:
        assert self._desk is not None, "a worker has no scheduler half"
        return self._desk

    def _step(self) -> KVStep:
        metadata = self._get_connector_metadata()
        assert isinstance(metadata, EPDKVConnectorMetadata)
        return metadata.step
