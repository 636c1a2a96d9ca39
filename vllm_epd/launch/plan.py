# SPDX-License-Identifier: Apache-2.0
"""From a topology to the instances that are to run. Pure."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from vllm_epd.errors import ConfigError
from vllm_epd.launch.config import LaunchConfig
from vllm_epd.launch.devices import assign_gpus, gpus_needed
from vllm_epd.launch.environment import instance_environment
from vllm_epd.topology import Topology
from vllm_epd.types import RoleSet

INSTANCE_HOST = "127.0.0.1"
OURS = ("--host", "--port", "--epd-role", "--epd-router")
"""Flags of `vllm serve` that only the launcher can give."""


@dataclass(frozen=True, slots=True)
class Machine:
    """What instances find on this machine.

    Attributes:
        environment: the user's.
        gpus: usable ones, as CUDA_VISIBLE_DEVICES names them.
        cores: usable ones.
    """

    environment: Mapping[str, str]
    gpus: tuple[str, ...]
    cores: int


@dataclass(frozen=True, slots=True)
class InstanceSpec:
    """One instance that is to run.

    Attributes:
        name: letters of its roles and a number, `E0`; also names its log.
        roles: what it serves.
        port: of its API, on the loopback address.
        arguments: for `vllm serve`, beside the launcher's own.
        environment: all variables.
    """

    name: str
    roles: RoleSet
    port: int
    arguments: tuple[str, ...]
    environment: Mapping[str, str]

    @property
    def url(self) -> str:
        """Base URL of its API."""
        return f"http://{INSTANCE_HOST}:{self.port}"


def instance_names(topology: Topology) -> dict[str, RoleSet]:
    """Names and roles of the instances of a topology, in order."""
    return {f"{group.roles.letters}{number}": group.roles for group in topology.groups for number in range(group.count)}


def plan_instances(
    topology: Topology,
    config: LaunchConfig,
    common: Sequence[str],
    last: Sequence[str],
    ports: Sequence[int],
    machine: Machine,
) -> tuple[InstanceSpec, ...]:
    """Say what each instance is given.

    Args:
        topology: which instances.
        config: its arguments and environment for roles.
        common: arguments for `vllm serve` before those of the configuration, which so win.
        last: arguments after them, from the command line.
        ports: as many as there are instances.
        machine: where they run.

    Raises:
        ConfigError: too few GPUs, or an argument that only the launcher can give.
    """
    roles = instance_names(topology)
    arguments = {name: (*common, *config.arguments_for(each), *last) for name, each in roles.items()}
    for given in arguments.values():
        _check_not_ours(given)
    needs = {name: gpus_needed(given) for name, given in arguments.items()}
    gpus = assign_gpus(needs, machine.gpus, config.share_gpus)
    return tuple(
        InstanceSpec(
            name,
            roles[name],
            port,
            arguments[name],
            instance_environment(
                machine.environment,
                config.environment_for(roles[name]),
                gpus=gpus[name],
                instances=topology.size,
                cores=machine.cores,
                offline=config.model is None,
            ),
        )
        for name, port in zip(roles, ports, strict=True)
    )


def _check_not_ours(arguments: Sequence[str]) -> None:
    for argument in arguments:
        flag = argument.partition("=")[0].replace("_", "-")
        if flag in OURS:
            raise ConfigError(f"{flag} is given to each instance by the launcher; leave it out")
