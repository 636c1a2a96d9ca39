# SPDX-License-Identifier: Apache-2.0
"""What our connectors are told through vLLM's `ec_connector_extra_config` and `kv_connector_extra_config`."""

import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING, Any, Self

from vllm_epd.errors import ConfigError
from vllm_epd.types import TOKEN_ENV, Fingerprint

if TYPE_CHECKING:
    import torch

    from vllm_epd.transfer.agent import AgentConfig
    from vllm_epd.transfer.packing import Packing
    from vllm_epd.transfer.shard import Shard


@dataclass(frozen=True, slots=True)
class AgentSettings:
    """The transfer agents of one instance.

    Attributes:
        epoch: of this start of the instance; also names its local command channel.
        host: address on which its agents listen and by which peers reach them.
        port: first port; of the agents that serve peers, number n listens on `port + n`.
        pool_bytes: region for what is offered and for what has landed.
        lease_s: how long what is offered waits for its consumer.
        fetch_timeout_s: how long a consumer waits for one item, or a producer for room, before the request fails.
        transport: `auto`, or the one transport to use.
        nixl_backend: what NIXL moves bytes with.
    """

    epoch: str
    host: str
    port: int
    pool_bytes: int
    lease_s: float
    fetch_timeout_s: float
    transport: str
    nixl_backend: str

    @classmethod
    def from_extra_config(cls, data: Mapping[str, Any]) -> Self:
        """Read what `to_extra_config` wrote; unknown or missing keys are refused."""
        names = {f.name for f in fields(cls)}
        if set(data) != names:
            raise ConfigError(
                f"our connectors are configured by --epd-role; these settings are {sorted(names)}, got {sorted(data)}"
            )
        return cls(**data)

    def to_extra_config(self) -> dict[str, Any]:
        """As a JSON-able mapping."""
        return asdict(self)

    def peer_address(self, agent: int) -> str:
        """Where peers reach one of the agents that offer, see `Shard.agent`."""
        return f"tcp://{self.host}:{self.port + agent}"

    def agent_config(
        self,
        fingerprint: Fingerprint,
        data_parallel_rank: int,
        tensor_parallel_rank: int,
        device: "torch.device",
        *,
        offers: bool,
        content: str = "embeddings",
        shard: "Shard | None" = None,
        packing: "Packing | None" = None,
    ) -> "AgentConfig":
        """What the agent of one worker is made from; the shared secret comes from the environment.

        Args:
            fingerprint: of the instance.
            data_parallel_rank: of the worker.
            tensor_parallel_rank: of the worker.
            device: of the model.
            offers: whether this agent offers anything.
            content: what its items are, as both sides of a transfer must take them.
            shard: which part of each item it has; by default all of it.
            packing: in which form it offers them, and how they are checked; by default as they are, and not at all.
        """
        from vllm_epd.transfer.agent import AgentConfig
        from vllm_epd.transfer.handshake import Identity
        from vllm_epd.transfer.packing import Packing
        from vllm_epd.transfer.shard import Shard
        from vllm_epd.transfer.tiers import TransferMemory

        shard = shard or Shard()
        return AgentConfig(
            identity=Identity(self.epoch, fingerprint, os.environ.get(TOKEN_ENV, "").encode(), content, shard),
            command=self.command_address(data_parallel_rank, tensor_parallel_rank),
            listen=self.peer_address(shard.agent(data_parallel_rank)) if offers else None,
            memory=TransferMemory(self.pool_bytes, str(device), self.transport, self.nixl_backend),
            lease_s=self.lease_s,
            timeout_s=self.fetch_timeout_s,
            packing=packing or Packing(),
        )

    def command_address(self, data_parallel_rank: int, tensor_parallel_rank: int) -> str:
        """Where the scheduler half reaches the agent of one worker: an abstract socket, gone with its owner."""
        return f"ipc://@epd-{self.epoch}-{data_parallel_rank}-{tensor_parallel_rank}"


@dataclass(frozen=True, slots=True)
class EmbeddingSettings(AgentSettings):
    """One instance's embedding connector.

    Attributes:
        tower: whether the instance can encode by itself.
        codec: how the embeddings that it offers are encoded.
        check: how they are checked.
    """

    tower: bool
    codec: str = "none"
    check: str = "none"

    def packing(self, row_bytes: int, number_bytes: int) -> "Packing":
        """In which form embeddings are offered.

        Args:
            row_bytes: size of the vector that the encoder makes for one placeholder token.
            number_bytes: size of one number of it.
        """
        from vllm_epd.transfer.packing import Packing

        return Packing(self.codec, self.check, row_bytes, number_bytes)


@dataclass(frozen=True, slots=True)
class KVSettings(AgentSettings):
    """One instance's KV connector; a pool of 0 bytes is sized by the longest prompt. Its chunks travel as they are."""
