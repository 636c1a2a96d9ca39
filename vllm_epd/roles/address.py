# SPDX-License-Identifier: Apache-2.0
"""Where others reach this instance."""

import ipaddress
import random
import socket
from urllib.parse import urlsplit

from vllm_epd.errors import ConfigError

ANY = frozenset({"", "0.0.0.0", "::"})
TRIES = 64
PORTS = range(18000, 32000)
"""Below the range from which the kernel takes ports for outgoing connections."""


def advertised_host(advertise: str | None, router: str | None, bind_host: str | None) -> str:
    """The IP address under which peers reach this instance.

    In this order: `--epd-advertise`, the address that `--host` binds, the one from which the router is reached,
    loopback.

    Raises:
        ConfigError: a name that does not resolve.
    """
    if advertise:
        return resolve(urlsplit(advertise).hostname or "" if "//" in advertise else advertise.rsplit(":", 1)[0])
    if bind_host and bind_host not in ANY:
        return resolve(bind_host)
    if router:
        return _source_address(resolve(urlsplit(router).hostname or ""))
    return "127.0.0.1"


def resolve(host: str) -> str:
    """`host` as an IP address, without the network where it is one already."""
    try:
        return str(ipaddress.ip_address(host.strip("[]")))
    except ValueError:
        pass
    try:
        return str(socket.getaddrinfo(host, None, socket.AF_INET)[0][4][0])
    except (OSError, IndexError) as error:
        raise ConfigError(f"host {host!r} does not resolve: {error}") from error


def free_port(host: str, count: int) -> int:
    """First of `count` neighbouring ports that are free on `host` at the moment.

    Raises:
        ConfigError: none found, or `host` is no address of this machine.
    """
    for _ in range(TRIES):
        first = random.choice(PORTS)
        if all(_is_free(host, port) for port in range(first, first + count)):
            return first
    raise ConfigError(f"no {count} neighbouring free ports on {host}; is it an address of this machine?")


def _is_free(host: str, port: int) -> bool:
    with socket.socket(_family(host), socket.SOCK_STREAM) as probe:
        try:
            probe.bind((host, port))
        except OSError:
            return False
        return True


def _source_address(target: str) -> str:
    with socket.socket(_family(target), socket.SOCK_DGRAM) as probe:
        try:
            probe.connect((target, 9))
        except OSError:
            return "127.0.0.1"
        return str(probe.getsockname()[0])


def _family(address: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in address else socket.AF_INET
