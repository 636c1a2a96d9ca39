# SPDX-License-Identifier: Apache-2.0
"""`vllm serve --epd-role`: flags in, vLLM's own arguments out."""

import argparse
import logging
import os
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from vllm_epd.compat.cli import given_arguments, runs_on_cpu, wrap_cli
from vllm_epd.compat.items import install as name_items
from vllm_epd.compat.lora import install as take_in_adapters
from vllm_epd.compat.registry import CONNECTOR, KV_CONNECTOR, register
from vllm_epd.compat.resume import install as go_on_from_sent_tokens
from vllm_epd.compat.sharding import install as cut_items
from vllm_epd.compat.vllm import share_logging
from vllm_epd.config import INSTANCE_FLAGS, InstanceConfig, load_instance_config
from vllm_epd.connectors.settings import EmbeddingSettings, KVSettings
from vllm_epd.errors import ConfigError
from vllm_epd.roles.address import advertised_host, free_port
from vllm_epd.roles.derive import Derived, derive
from vllm_epd.types import ROLE_ENV, RoleSet, kv_epoch

logger = logging.getLogger(__name__)

ATTRIBUTE = "epd_instance"
"""Attribute of vLLM's arguments that holds the `Instance`, for the API server."""

NIXL_THREADS = 0
"""Extra threads of NIXL's UCX backend; each spins."""


@dataclass(frozen=True, slots=True)
class Instance:
    """This start of this instance.

    Attributes:
        port: first of the neighbouring ports that its agents listen on: those for embeddings, one for each
            data-parallel rank, and after them those for KV caches, one for each worker.
        kv_port: first of the latter.
    """

    config: InstanceConfig
    roles: RoleSet
    epoch: str
    host: str
    port: int
    kv_port: int


def install() -> None:
    """Give `vllm serve` its `--epd-*` flags."""
    wrap_cli(add_flags, apply_role)


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Add our flags as a group of their own."""
    group = parser.add_argument_group(
        title="EPD", description="Run this server as an encode, prefill or decode instance (vllm-epd)."
    )
    group.add_argument("--epd-config", metavar="FILE", help="YAML file with the values of these flags.")
    for flag in INSTANCE_FLAGS:
        help_text = flag.help if flag.default is None else f"{flag.help} (default: {flag.default})"
        group.add_argument(flag.flag, type=flag.parse, choices=flag.choices or None, help=help_text)


def apply_role(args: argparse.Namespace) -> None:
    """Make `args` those of an instance of the given role, in place and once; without a role, leave them.

    Raises:
        ConfigError: the flags cannot be honoured.
    """
    if hasattr(args, ATTRIBUTE):
        return
    config = read_config(args)
    if config.role is None:
        return
    roles = RoleSet.parse(config.role)
    derived = derive(roles, given_arguments(args), cpu=runs_on_cpu())
    host = advertised_host(config.advertise, config.router, args.host)
    ranks, workers = args.data_parallel_size, args.data_parallel_size * args.tensor_parallel_size
    port = free_port(host, ranks + workers)
    instance = Instance(config, roles, uuid.uuid4().hex, host, port, port + ranks)
    for name, value in derived.arguments.items():
        setattr(args, name, value)
    args.ec_transfer_config = _ec_config(instance, derived)
    if derived.kv_role is not None:
        args.kv_transfer_config = KV_CONFIGS[config.kv_connector](instance, derived.kv_role)
    os.environ[ROLE_ENV] = str(roles)
    _allow_endpoint_plugin()
    setattr(args, ATTRIBUTE, instance)
    share_logging()
    register()
    name_items()
    cut_items()
    go_on_from_sent_tokens()
    take_in_adapters()
    # vLLM only logs an endpoint plugin that does not load, and the instance would never register.
    import_module("vllm_epd.roles.admin")
    logger.info("role %s, epoch %s, transfers at %s", roles, instance.epoch, host)


def read_config(args: argparse.Namespace) -> InstanceConfig:
    """The `--epd-*` values of the command line over those of `--epd-config`."""
    file = getattr(args, "epd_config", None)
    given = {flag.name: getattr(args, f"epd_{flag.name}", None) for flag in INSTANCE_FLAGS}
    overrides = {name: value for name, value in given.items() if value is not None}
    return load_instance_config(Path(file) if file else None, overrides)


def _ec_config(instance: Instance, derived: Derived) -> Any:
    from vllm.config import ECTransferConfig

    config = instance.config
    settings = EmbeddingSettings(
        **_agents(instance, instance.epoch, instance.port),
        pool_bytes=config.pool_bytes,
        lease_s=config.lease_s,
        tower=derived.tower,
        codec=config.embedding_codec,
        check=config.embedding_check,
    )
    return ECTransferConfig(
        ec_connector=CONNECTOR,
        ec_role=derived.ec_role,
        engine_id=instance.epoch,
        ec_connector_extra_config=settings.to_extra_config(),
    )


def _agents(instance: Instance, epoch: str, port: int) -> dict[str, Any]:
    """What the agents of both connectors have in common."""
    config = instance.config
    return {
        "epoch": epoch,
        "host": instance.host,
        "port": port,
        "fetch_timeout_s": config.fetch_timeout_s,
        "transport": config.transport,
        "nixl_backend": config.nixl_backend,
    }


def _own_kv_config(instance: Instance, role: str) -> Any:
    from vllm.config import KVTransferConfig

    config = instance.config
    settings = KVSettings(
        **_agents(instance, kv_epoch(instance.epoch), instance.kv_port),
        pool_bytes=config.kv_pool_bytes or 0,
        lease_s=config.kv_lease_s,
    )
    return KVTransferConfig(
        kv_connector=KV_CONNECTOR,
        kv_role=role,
        engine_id=instance.epoch,
        kv_connector_extra_config=settings.to_extra_config(),
    )


def _nixl_kv_config(instance: Instance, role: str) -> Any:
    from vllm.config import KVTransferConfig

    os.environ["VLLM_NIXL_SIDE_CHANNEL_HOST"] = instance.host
    os.environ["VLLM_NIXL_SIDE_CHANNEL_PORT"] = str(instance.kv_port)
    return KVTransferConfig(
        kv_connector="NixlConnector",
        kv_role=role,
        engine_id=instance.epoch,
        kv_connector_extra_config={"kv_lease_duration": instance.config.kv_lease_s, "num_threads": NIXL_THREADS},
    )


KV_CONFIGS: Mapping[str, Callable[[Instance, str], Any]] = {"epd": _own_kv_config, "nixl": _nixl_kv_config}
"""By `--epd-kv-connector`: vLLM's KV transfer configuration for one side."""


def _allow_endpoint_plugin() -> None:
    """vLLM loads endpoint plugins only when VLLM_PLUGINS names them, which then filters all other plugins too."""
    from importlib.metadata import entry_points

    allowed = os.environ.get("VLLM_PLUGINS")
    if allowed is None:
        # ### PATCH START endpoint-allow
        groups = ("general", "io_processor", "platform", "stat_logger")
        names = {point.name for group in groups for point in entry_points(group=f"vllm.{group}_plugins")}
        os.environ["VLLM_PLUGINS"] = ",".join(sorted(names | {"epd"}))
        # ### PATCH END
    elif "epd" not in allowed.split(","):
        raise ConfigError(f"VLLM_PLUGINS={allowed} leaves out epd, which --epd-role needs; add it")
