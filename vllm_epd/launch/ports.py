# SPDX-License-Identifier: Apache-2.0
"""Ports for instances that start soon."""

import contextlib
import socket
from random import Random

from vllm_epd.errors import ConfigError

RANGE = range(10000, 18000)
"""Below the ports of outgoing connections, and below those on which instances offer tensors.

Until an instance listens, which takes seconds, any connection could take a port of the former kind, even that
which asks whether the instance listens already.
"""


def free_ports(host: str, count: int, random: Random) -> list[int]:
    """Different ports that are free on `host` at the moment.

    Raises:
        ConfigError: there are not so many.
    """
    found: list[int] = []
    for port in random.sample(RANGE, len(RANGE)):
        if len(found) == count:
            break
        with contextlib.suppress(ConfigError):
            check_port(host, port, reuse=False)
            found.append(port)
    if len(found) < count:
        raise ConfigError(f"no {count} free ports from {RANGE.start} to {RANGE.stop - 1} on {host}")
    return found


def check_port(host: str, port: int, *, reuse: bool = True) -> None:
    """Refuse an address on which nobody could listen, before much is started for it.

    Args:
        host: an address of this machine.
        port: to listen on.
        reuse: whether a port counts as free whose last connections linger, or that somebody took without
            listening yet.

    Raises:
        ConfigError: the port is taken, or `host` is no address of this machine.
    """
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, int(reuse))
        try:
            probe.bind((host, port))
        except OSError as error:
            raise ConfigError(f"cannot listen on {host}:{port}: {error.strerror or error}") from error
