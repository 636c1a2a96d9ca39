# SPDX-License-Identifier: Apache-2.0
"""Typed configuration of a topology on one host: what `vllm-epd up` and its `--config` file give."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from vllm_epd.config import check_positive, load, setting
from vllm_epd.errors import ConfigError
from vllm_epd.types import RoleSet

V = TypeVar("V")

EVERY_ROLE = "all"


def parse_gpus(value: Any) -> str | list[int]:
    """Read `auto`, `none`, `0,1` or a list of numbers.

    Raises:
        ValueError: something else.
    """
    if value in ("auto", "none"):
        return str(value)
    gpus = [int(number) for number in str(value).strip("[]").split(",")]
    if min(gpus) < 0 or len(set(gpus)) != len(gpus):
        raise ValueError(f"{value!r} is no list of different GPUs")
    return gpus


@dataclass(frozen=True, slots=True)
class RouterOptions:
    """What a topology says about its router; None leaves the router's own default."""

    policy: str | None = setting(None, "How to choose among instances of one role.")
    encode_policy: str | None = setting(None, "The same among those that encode.")
    prefill_policy: str | None = setting(None, "The same among those that prefill.")
    decode_policy: str | None = setting(None, "The same among those that decode.")
    order: str | None = setting(None, "Who of those that wait is next.")
    encode_order: str | None = setting(None, "The same for those that wait to be encoded.")
    prefill_order: str | None = setting(None, "The same for those that wait to be prefilled.")
    decode_order: str | None = setting(None, "The same for those that wait to be decoded.")
    max_queue: int | None = setting(None, "Most requests that wait for each stage.")
    ttft_slo_s: float | None = setting(None, "Seconds within which a first token should come.")
    irp_degree: str | None = setting(None, "As how many shards one large media part is encoded, or auto.")
    retries: int | None = setting(None, "How often a request may start over elsewhere.")
    recovery_bytes: int | None = setting(None, "Of bodies that are kept for that.")
    access_log: str | None = setting(None, "File for a line of JSON for each request, - for the router's own log.")
    ttl_s: float | None = setting(None, "Seconds after which a silent instance is dropped.")
    workers: int | None = setting(None, "Processes of the router.")


@dataclass(frozen=True, slots=True)
class LaunchConfig:
    """One topology.

    The keys of `roles` and `env` are `all`, a role (`encode+prefill`) or its letters (`EP`).
    """

    model: str | None = setting(None, "Name or folder of the model, as for `vllm serve`.")
    demo: str | None = setting(None, "Family of the tiny demo model that is served where no model is given.")
    topology: str = setting("1E1P1D", "How many instances of which roles.")
    host: str = setting("127.0.0.1", "Address on which the router listens.")
    port: int = setting(8000, "Port on which the router listens; 0 takes a free one.")
    roles: dict[str, list[str]] = setting(
        dict, "Arguments for `vllm serve` by role.", expects="a mapping from roles to lists of arguments"
    )
    env: dict[str, dict[str, str]] = setting(
        dict, "Environment variables by role.", expects="a mapping from roles to mappings of variables"
    )
    router: RouterOptions = setting(
        RouterOptions, "How the router works.", expects="a mapping such as {policy: least_loaded, ttl_s: 6}"
    )
    log_dir: str | None = setting(None, "Folder for the logs, by default a new one for each start.")
    startup_timeout_s: float = setting(600.0, "Seconds that one instance may take to become ready.")
    stop_grace_s: float = setting(15.0, "Seconds that an instance may take to stop before it is killed.")
    parallel_starts: int | None = setting(None, "Most instances that start at the same time.")
    gpus: Any = setting("auto", "GPUs to use.", parse=parse_gpus, expects="auto, none or a list of numbers")
    share_gpus: bool = setting(False, "Let instances share GPUs where there are not enough.")

    def __post_init__(self) -> None:
        if self.model is not None and self.demo is not None:
            raise ConfigError(f"model {self.model} and demo {self.demo} exclude each other; give one of them")
        if not 0 <= self.port < 2**16:
            raise ConfigError(f"port: expected 0 to 65535, got {self.port}")
        check_positive(self, "startup_timeout_s", "stop_grace_s", "parallel_starts")
        for key in (*self.roles, *self.env):
            _role_of(key)

    def arguments_for(self, roles: RoleSet) -> list[str]:
        """Arguments for `vllm serve`: those of `all`, then those of the role, which so win."""
        return [argument for given in _for_role(self.roles, roles) for argument in given]

    def environment_for(self, roles: RoleSet) -> dict[str, str]:
        """Environment variables: those of `all`, and over them those of the role."""
        return {name: value for given in _for_role(self.env, roles) for name, value in given.items()}


def load_launch_config(file: Path | None, overrides: Mapping[str, Any]) -> LaunchConfig:
    """Read the configuration of a topology; `overrides`, from the command line, win over the file.

    Raises:
        ConfigError: unknown keys, wrong types, impossible values, an unreadable file.
    """
    return load(LaunchConfig, file, overrides)


def _for_role(settings: Mapping[str, V], roles: RoleSet) -> list[V]:
    """What is said of every role, then what is said of this one."""
    common = [value for key, value in settings.items() if _role_of(key) is None]
    return common + [value for key, value in settings.items() if _role_of(key) == roles]


def _role_of(key: str) -> RoleSet | None:
    """The roles that a key names; None for all."""
    if key == EVERY_ROLE:
        return None
    try:
        return RoleSet.from_letters(key) if key.isupper() else RoleSet.parse(key)
    except ConfigError as error:
        raise ConfigError(f"{key!r} is neither {EVERY_ROLE!r} nor a role: {error}") from error
