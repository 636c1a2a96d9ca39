# SPDX-License-Identifier: Apache-2.0
"""What the embedding connector is told through vLLM's `ec_connector_extra_config`."""

import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING, Any, Self

from vllm_epd.errors import ConfigError
from vllm_epd.types import TOKEN_ENV, Fingerprint

if TYPE_CHECKING:
    import torch

    from vllm_epd.transfer.agent import AgentConfig


@dataclass(frozen=True, slots=True)
class EmbeddingSettings:
    """One instance's embedding connector.

    Attributes:
        epoch: of this start of the instance; also names its local command channel.
        host: address on which its agents listen and by which peers reach them.
        port: first port; data-parallel rank n uses `port + n`.
        pool_bytes: region for what is offered and for what has landed.
        lease_s: how long an offered embedding waits for its consumer.
        fetch_timeout_s: how long a consumer waits for one embedding, or a producer for room, before the request fails.
        transport: `auto`, or the one transport to use.
        nixl_backend: what NIXL moves bytes with.
        tower: whether the instance can encode by itself.
    """

    epoch: str
    host: str
    port: int
    pool_bytes: int
    lease_s: float
    fetch_timeout_s: float
    transport: str
    nixl_backend: str
    tower: bool

    @classmethod
    def from_extra_config(cls, data: Mapping[str, Any]) -> Self:
        """Read what `to_extra_config` wrote; unknown or missing keys are refused."""
        names = {f.name for f in fields(cls)}
        if set(data) != names:
            raise ConfigError(
                f"EPDEmbeddingConnector is configured by --epd-role; its settings are {sorted(names)},"
                f" got {sorted(data)}"
            )
        return cls(**data)

    def to_extra_config(self) -> dict[str, Any]:
        """As a JSON-able mapping."""
        return asdict(self)

    def peer_address(self, data_parallel_rank: int) -> str:
        """Where peers reach the agent that offers embeddings."""
        return f"tcp://{self.host}:{self.port + data_parallel_rank}"

    def agent_config(
        self,
        fingerprint: Fingerprint,
        data_parallel_rank: int,
        tensor_parallel_rank: int,
        device: "torch.device",
        *,
        offers: bool,
    ) -> "AgentConfig":
        """What the agent of one worker is made from; the shared secret comes from the environment."""
        from vllm_epd.transfer.agent import AgentConfig
        from vllm_epd.transfer.handshake import Identity
        from vllm_epd.transfer.tiers import TransferMemory

        return AgentConfig(
            identity=Identity(self.epoch, fingerprint, os.environ.get(TOKEN_ENV, "").encode()),
            command=self.command_address(data_parallel_rank, tensor_parallel_rank),
            listen=self.peer_address(data_parallel_rank) if offers else None,
            memory=TransferMemory(self.pool_bytes, str(device), self.transport, self.nixl_backend),
            lease_s=self.lease_s,
            timeout_s=self.fetch_timeout_s,
        )

    def command_address(self, data_parallel_rank: int, tensor_parallel_rank: int) -> str:
        """Where the scheduler half reaches the agent of one worker: an abstract socket, gone with its owner."""
        return f"ipc://@epd-{self.epoch}-{data_parallel_rank}-{tensor_parallel_rank}"
