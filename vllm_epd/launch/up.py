# SPDX-License-Identifier: Apache-2.0
"""`vllm-epd up`: from a configuration to a running topology."""

import asyncio
import importlib.util
import os
from collections.abc import Sequence
from datetime import datetime
from random import Random

from rich.console import Console

from vllm_epd.errors import ConfigError
from vllm_epd.launch.commands import base_url, router_command, serve_command
from vllm_epd.launch.config import LaunchConfig
from vllm_epd.launch.example import curl_command
from vllm_epd.launch.gpus import find_gpus
from vllm_epd.launch.launcher import Launcher
from vllm_epd.launch.logs import make_log_dir
from vllm_epd.launch.model import Model, resolve_model, served_name
from vllm_epd.launch.plan import INSTANCE_HOST, InstanceSpec, Machine, plan_instances
from vllm_epd.launch.ports import check_port, free_ports
from vllm_epd.launch.startup import Blueprint, Limits, RouterSpec
from vllm_epd.topology import Topology


def up(config: LaunchConfig, arguments: Sequence[str], console: Console) -> int:
    """Run a topology in the foreground.

    Args:
        config: what is to run.
        arguments: given to every `vllm serve`, after those of the configuration.
        console: for the user.

    Returns:
        The exit code: 0 after a signal, 1 when a process failed.

    Raises:
        ConfigError: the topology cannot be run as asked.
    """
    topology = Topology.parse(config.topology)
    machine = survey(config)
    port = config.port or free_ports(config.host, 1, Random())[0]
    check_port(config.host, port)
    url = base_url(config.host, port)
    model = resolve_model(config)
    ports = free_ports(INSTANCE_HOST, topology.size, Random())
    instances = plan_instances(topology, config, model.arguments, arguments, ports, machine)
    if importlib.util.find_spec("vllm") is None:
        raise ConfigError("vLLM is not installed for this Python; pip install 'vllm-epd[gpu]' or [cpu]")
    router = RouterSpec(url, router_command(config.host, port, config.router), machine.environment)
    blueprint = Blueprint(router, instances, serve_command(model.source, url), topology.text_only)
    log_dir = make_log_dir(config.log_dir, machine.environment, datetime.now())
    _say(console, f"{topology} of {model.source}, logs in {log_dir}")
    if topology.text_only:
        _say(console, "no instance encodes: this topology serves text alone")
    launcher = Launcher(
        blueprint,
        limits(config, machine, topology.size),
        log_dir,
        console,
        lambda: _announce(console, url, topology, model, instances),
    )
    return asyncio.run(launcher.run())


def survey(config: LaunchConfig) -> Machine:
    """What this machine offers, as far as the configuration wants it."""
    environment = dict(os.environ)
    gpus: tuple[str, ...] = ()
    if config.gpus == "auto":
        gpus = find_gpus(environment)
    elif config.gpus != "none":
        gpus = tuple(str(gpu) for gpu in config.gpus)
    return Machine(environment, gpus, len(os.sched_getaffinity(0)))


def limits(config: LaunchConfig, machine: Machine, instances: int) -> Limits:
    """Without GPUs, no more starts at once than cores: starting is compiling and loading, and waits for nothing."""
    at_once = config.parallel_starts or (instances if machine.gpus else machine.cores)
    return Limits(config.startup_timeout_s, config.stop_grace_s, at_once)


def _announce(console: Console, url: str, topology: Topology, model: Model, instances: Sequence[InstanceSpec]) -> None:
    name = served_name(model, instances[-1].arguments)
    _say(console, f"ready: {url} ({topology}, {name})")
    _say(console, "try:")
    _say(console, f"  {curl_command(url, name, with_image=not topology.text_only)}")


def _say(console: Console, text: str) -> None:
    console.print(text, markup=False, highlight=False, soft_wrap=True)
