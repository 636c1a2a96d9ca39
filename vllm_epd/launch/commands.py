# SPDX-License-Identifier: Apache-2.0
"""The command lines of the processes of a topology."""

import sys
from collections.abc import Callable
from dataclasses import fields

from vllm_epd.launch.config import RouterOptions
from vllm_epd.launch.plan import INSTANCE_HOST, InstanceSpec

ANY_ADDRESS = {"0.0.0.0": "127.0.0.1", "::": "::1", "": "127.0.0.1"}
"""Addresses to listen on that are none to connect to, and what reaches their listener from here."""

# -P keeps a folder named vllm in the current directory, such as a checkout, from being taken for the package.
PYTHON = (sys.executable, "-P", "-m")


def base_url(host: str, port: int) -> str:
    """Where something that listens on `host` is reached from this machine."""
    address = ANY_ADDRESS.get(host, host)
    return f"http://[{address}]:{port}" if ":" in address else f"http://{address}:{port}"


def router_command(host: str, port: int, options: RouterOptions) -> list[str]:
    """`vllm-epd route`."""
    command = [*PYTHON, "vllm_epd.cli", "route", "--host", host, "--port", str(port)]
    for each in fields(options):
        if (value := getattr(options, each.name)) is not None:
            command += ["--" + each.name.removesuffix("_s").replace("_", "-"), str(value)]
    return command


def serve_command(model: str, router: str) -> Callable[[InstanceSpec], list[str]]:
    """`vllm serve` for the instances of one model that register at `router`."""

    def command(spec: InstanceSpec) -> list[str]:
        ours = ["--host", INSTANCE_HOST, "--port", str(spec.port)]
        ours += ["--epd-role", str(spec.roles), "--epd-router", router]
        # Not the `vllm` script: it need not lie beside this interpreter.
        return [*PYTHON, "vllm.entrypoints.cli.main", "serve", model, *ours, *spec.arguments]

    return command
