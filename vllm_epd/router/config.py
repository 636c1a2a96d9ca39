# SPDX-License-Identifier: Apache-2.0
"""Typed configuration of the router."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Self

from vllm_epd.errors import ConfigError
from vllm_epd.router.ordering import order_named
from vllm_epd.router.policies import DEFAULTS, policy_named
from vllm_epd.types import TOKEN_ENV, Role


@dataclass(frozen=True, slots=True)
class Timeouts:
    """How long to wait for an instance, in seconds.

    Attributes:
        connect_s: until a connection stands.
        encode_s: for the whole answer of an encode instance; before that, for room in the encode instances' pools.
        prefill_s: for the whole answer of a prefill instance.
        decode_s: for the whole answer of a decode instance, a stream up to its last token.
        lease_s: for an encode instance to say whether it still holds an embedding.
    """

    connect_s: float = 3.0
    encode_s: float = 120.0
    prefill_s: float = 600.0
    decode_s: float = 3600.0
    lease_s: float = 5.0

    def __post_init__(self) -> None:
        for each in fields(self):
            if not getattr(self, each.name) > 0:
                raise ConfigError(f"timeouts.{each.name} must be positive, got {getattr(self, each.name)!r}")

    @classmethod
    def from_mapping(cls, data: Mapping[str, Any]) -> Self:
        """Read the fields by name; unknown ones are refused."""
        _known(cls, data)
        return cls(**data)

    def of(self, stage: Role) -> float:
        """The limit for a whole answer of `stage`."""
        if stage is Role.ENCODE:
            return self.encode_s
        return self.prefill_s if stage is Role.PREFILL else self.decode_s


@dataclass(frozen=True, slots=True)
class RouterConfig:
    """Everything that can be set about a router.

    Attributes:
        host: address to listen on.
        port: port to listen on; 0 takes a free one.
        workers: processes that share the port.
        ttl_s: an instance that has not been heard of for so long is dropped.
        heartbeat_s: how often instances are told to report.
        policy: how to choose among instances in all stages, a name of `policies.POLICIES`; None takes each stage's
            default.
        encode_policy: the same for encode instances alone; so for `prefill_policy` and `decode_policy`.
        order: who of those that wait for a stage is next, a name of `ordering.ORDERS`.
        encode_order: the same for those that wait for encode instances; so for `prefill_order` and `decode_order`.
        max_queue: how many requests may wait for each stage; further ones are refused with 429.
        ttft_slo_s: within which time the first token should come, for requests that say nothing about it.
        max_body_bytes: larger request bodies are refused with 413.
        fan_out: how many media parts, or pairs of P and D, of one client request are served at once.
        max_choices: most pairs of P and D for one client request (prompts times n).
        irp_degree: as how many shards one media part is encoded at most, each by another instance; `auto` for as many
            as there are idle encode instances, if the part is large.
        reuse_entries: how many embeddings that encode instances have made are remembered, for requests that bring
            the same media again.
        retries: how often a request is tried again after instances failed at it.
        recovery_bytes: how much of the bodies of running requests is kept, so that they can be tried again after
            their media has been encoded or a decode instance has them.
        grace_s: how long running requests may go on after SIGTERM.
        timeouts: how long to wait for instances.
        access_log: file for one line of JSON for each request for an answer, `-` for standard output; None writes none.
        token: secret of the registration API; None leaves it open.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    workers: int = 1
    ttl_s: float = 6.0
    heartbeat_s: float = 2.0
    policy: str | None = None
    encode_policy: str | None = None
    prefill_policy: str | None = None
    decode_policy: str | None = None
    order: str = "fcfs"
    encode_order: str | None = None
    prefill_order: str | None = None
    decode_order: str | None = None
    max_queue: int = 1024
    ttft_slo_s: float | None = None
    max_body_bytes: int = 512 * 2**20
    fan_out: int = 64
    max_choices: int = 1024
    irp_degree: int | str = "auto"
    reuse_entries: int = 2**16
    retries: int = 3
    recovery_bytes: int = 256 * 2**20
    grace_s: float = 30.0
    timeouts: Timeouts = field(default_factory=Timeouts)
    access_log: str | None = None
    token: str | None = field(default_factory=lambda: os.environ.get(TOKEN_ENV) or None, repr=False)

    def __post_init__(self) -> None:
        for role in Role:
            policy_named(self.policy_of(role))
            order_named(self.order_of(role))
        if self.ttft_slo_s is not None and not self.ttft_slo_s > 0:
            raise ConfigError(f"ttft_slo_s must be positive, got {self.ttft_slo_s}")
        if not 0 < self.heartbeat_s < self.ttl_s:
            raise ConfigError(f"heartbeat_s must be positive and below ttl_s, got {self.heartbeat_s} and {self.ttl_s}")
        if not 0 <= self.port < 2**16:
            raise ConfigError(f"port must be between 0 and 65535, got {self.port}")
        for name in ("workers", "max_body_bytes", "fan_out", "max_choices", "reuse_entries", "max_queue"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.irp_degree != "auto" and not str(self.irp_degree).isdecimal() or self.irp_limit == 0:
            raise ConfigError(f"irp_degree must be auto or an integer of at least 1, got {self.irp_degree!r}")
        for name in ("grace_s", "retries", "recovery_bytes"):
            if getattr(self, name) < 0:
                raise ConfigError(f"{name} must not be negative, got {getattr(self, name)}")

    @property
    def irp_limit(self) -> int | None:
        """`irp_degree` as a number; None for `auto`."""
        return None if self.irp_degree == "auto" else int(self.irp_degree)

    def policy_of(self, stage: Role) -> str:
        """The name of the policy by which instances of a stage are chosen."""
        own: str | None = getattr(self, f"{stage}_policy")
        return own or self.policy or DEFAULTS[stage]

    def order_of(self, stage: Role) -> str:
        """The name of the order in which requests wait for a stage."""
        own: str | None = getattr(self, f"{stage}_order")
        return own or self.order

    @classmethod
    def from_mapping(cls, data: Mapping[str, Any]) -> Self:
        """Read the fields by name, `timeouts` as a mapping; unknown ones are refused."""
        _known(cls, data)
        values = dict(data)
        if isinstance(values.get("timeouts"), Mapping):
            values["timeouts"] = Timeouts.from_mapping(values["timeouts"])
        return cls(**values)


def _known(cls: type, data: Mapping[str, Any]) -> None:
    known = {each.name for each in fields(cls)}
    if unknown := set(data) - known:
        raise ConfigError(f"unknown router settings {sorted(unknown)}; known: {sorted(known)}")
