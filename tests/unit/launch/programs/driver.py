# SPDX-License-Identifier: Apache-2.0
"""Runs a launcher over stub programs, described by a JSON object as the only argument."""

import asyncio
import json
import os
import sys
from pathlib import Path
from random import Random

from rich.console import Console

from vllm_epd.launch.launcher import Launcher
from vllm_epd.launch.plan import InstanceSpec, instance_names
from vllm_epd.launch.ports import free_ports
from vllm_epd.launch.startup import Blueprint, Limits, RouterSpec
from vllm_epd.topology import Topology

PROGRAMS = Path(__file__).parent


def main():
    given = json.loads(sys.argv[1])
    topology = Topology.parse(given["topology"])
    router_port, *ports = free_ports("127.0.0.1", topology.size + 1, Random())
    router = RouterSpec(
        f"http://127.0.0.1:{router_port}",
        [sys.executable, str(PROGRAMS / "router.py"), str(router_port), *given.get("objection", [])],
        os.environ,
    )
    instances = [
        InstanceSpec(name, roles, port, tuple(given["behaviour"].get(name, [])), os.environ)
        for (name, roles), port in zip(instance_names(topology).items(), ports, strict=True)
    ]

    def command(spec):
        return [sys.executable, "-S", str(PROGRAMS / "instance.py"), str(spec.port), router.url, *spec.arguments]

    limits = Limits(given["startup_s"], given["grace_s"], given["parallel"], agreement_s=0.5, poll_s=0.05)
    console = Console()
    launcher = Launcher(
        Blueprint(router, instances, command, topology.text_only),
        limits,
        Path(given["log_dir"]),
        console,
        lambda: console.print("READY"),
    )
    sys.exit(asyncio.run(launcher.run()))


main()
