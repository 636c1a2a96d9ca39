# SPDX-License-Identifier: Apache-2.0
"""Which address an instance gives out."""

import socket

import pytest

from vllm_epd.errors import ConfigError
from vllm_epd.launch.ports import RANGE
from vllm_epd.roles.address import PORTS, advertised_host, free_port


@pytest.mark.parametrize(
    ("advertise", "router", "bind", "expected"),
    [
        (None, None, None, "127.0.0.1"),
        (None, "http://127.0.0.1:8000", None, "127.0.0.1"),
        (None, "http://127.0.0.1:8000", "0.0.0.0", "127.0.0.1"),
        (None, None, "127.0.0.2", "127.0.0.2"),
        ("127.0.0.3", "http://127.0.0.1:8000", "127.0.0.2", "127.0.0.3"),
        ("http://127.0.0.3:99/", None, None, "127.0.0.3"),
        ("127.0.0.3:99", None, None, "127.0.0.3"),
    ],
)
def test_advertised_host(advertise: str | None, router: str | None, bind: str | None, expected: str) -> None:
    assert advertised_host(advertise, router, bind) == expected


def test_a_name_that_does_not_resolve_is_refused() -> None:
    with pytest.raises(ConfigError, match="does not resolve"):
        advertised_host("nowhere.invalid", None, None)


def test_all_neighbouring_ports_are_free() -> None:
    first = free_port("127.0.0.1", 4)
    for port in range(first, first + 4):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", port))


def test_agents_take_no_port_that_the_launcher_has_given_to_an_api() -> None:
    assert not set(PORTS) & set(RANGE)


def test_a_foreign_address_has_no_free_ports() -> None:
    with pytest.raises(ConfigError, match="192.0.2.1"):
        free_port("192.0.2.1", 1)
