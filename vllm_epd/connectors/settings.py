# SPDX-License-Identifier: Apache-2.0
"""What the embedding connector is told through vLLM's `ec_connector_extra_config`."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Self

from vllm_epd.errors import ConfigError


@dataclass(frozen=True, slots=True)
class EmbeddingSettings:
    """One instance's embedding connector.

    Attributes:
        epoch: of this start of the instance; also names its local command channel.
        host: address on which its agents listen and by which peers reach them.
        port: first port; data-parallel rank n uses `port + n`.
        pool_bytes: region for what is offered and for what is landing.
        landing_bytes: bound on landed embeddings that no request needs at the moment.
        lease_s: how long an offered embedding waits for its consumer.
        fetch_timeout_s: how long a consumer waits for one embedding before it fails the request.
        tower: whether the instance can encode by itself.
    """

    epoch: str
    host: str
    port: int
    pool_bytes: int
    landing_bytes: int
    lease_s: float
    fetch_timeout_s: float
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

    def command_address(self, data_parallel_rank: int, tensor_parallel_rank: int) -> str:
        """Where the scheduler half reaches the agent of one worker: an abstract socket, gone with its owner."""
        return f"ipc://@epd-{self.epoch}-{data_parallel_rank}-{tensor_parallel_rank}"
