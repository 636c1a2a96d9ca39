# SPDX-License-Identifier: Apache-2.0
"""Roles, fingerprints and instance descriptions."""

from typing import Any

import pytest

from vllm_epd.errors import ConfigError
from vllm_epd.types import Fingerprint, InstanceInfo, Role, RoleSet, kv_epoch

FINGERPRINT = Fingerprint("c", "w", "float32", "p", "0.32.0")
INFO = InstanceInfo(
    "127.0.0.1:8001",
    "e",
    "http://127.0.0.1:8001",
    RoleSet.parse("encode+prefill"),
    ("demo",),
    FINGERPRINT,
    {"n": 1},
    ("tcp://a:1",),
    "epd",
    ("tcp://a:2", "tcp://a:3"),
)


@pytest.mark.parametrize(
    ("text", "letters", "whole", "language_model"),
    [
        ("encode", "E", False, False),
        ("decode+prefill", "PD", False, True),
        ("encode+prefill+decode", "EPD", True, True),
    ],
)
def test_roles(text: str, letters: str, whole: bool, language_model: bool) -> None:
    parsed = RoleSet.parse(text)
    assert parsed.letters == letters
    assert parsed.whole is whole
    assert parsed.language_model is language_model
    assert RoleSet.from_letters(letters) == parsed
    assert RoleSet.parse(str(parsed)) == parsed
    assert all((role in parsed) == (role.value in text) for role in Role)


@pytest.mark.parametrize("text", ["", "encoder", "encode+encode", "encode,prefill"])
def test_a_bad_role_is_refused(text: str) -> None:
    with pytest.raises(ConfigError):
        RoleSet.parse(text)


@pytest.mark.parametrize("letters", ["", "X", "EE"])
def test_bad_letters_are_refused(letters: str) -> None:
    with pytest.raises(ConfigError):
        RoleSet.from_letters(letters)


def test_an_instance_survives_its_mapping() -> None:
    assert InstanceInfo.from_mapping(INFO.to_mapping()) == INFO


@pytest.mark.parametrize(
    "change",
    [
        {"roles": "x"},
        {"url": ""},
        {"models": None},
        {"fingerprint": {"config": "c"}},
        {"surprise": 1},
        {"epoch": 7},
    ],
)
def test_a_bad_instance_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        InstanceInfo.from_mapping(INFO.to_mapping() | change)


def test_a_missing_field_is_refused() -> None:
    data = INFO.to_mapping()
    del data["url"]
    with pytest.raises(ConfigError, match="url"):
        InstanceInfo.from_mapping(data)


def test_differences_are_named() -> None:
    other = Fingerprint("c", "x", "float32", "p", "0.32.0")
    assert FINGERPRINT.differences(other) == ["weights: w != x"]
    assert FINGERPRINT.differences(FINGERPRINT) == []


@pytest.mark.parametrize("shards", [0, -1, "2", True, 1.5])
def test_a_kv_cache_has_at_least_one_part(shards: object) -> None:
    with pytest.raises(ConfigError, match="kv_shards"):
        InstanceInfo.from_mapping(INFO.to_mapping() | {"kv_shards": shards})


def test_agents_may_be_left_out() -> None:
    optional = ("kv", "kv_agents", "kv_shards", "agents")
    data = {name: value for name, value in INFO.to_mapping().items() if name not in optional}
    read = InstanceInfo.from_mapping(data)
    assert (read.kv, read.kv_agents, read.kv_shards, read.agents) == ("", (), 1, ())


def test_kv_agents_are_peers_under_another_name() -> None:
    assert kv_epoch("e") != "e"
    assert kv_epoch("e") != kv_epoch("f")
