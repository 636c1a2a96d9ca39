# SPDX-License-Identifier: Apache-2.0
"""Configuration: what is read, what wins, what is refused and in which words."""

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vllm_epd.config import INSTANCE_FLAGS, InstanceConfig, load_instance_config, parse_bytes
from vllm_epd.errors import ConfigError
from vllm_epd.launch.config import LaunchConfig, RouterOptions, load_launch_config, parse_gpus
from vllm_epd.types import RoleSet


@pytest.fixture
def yaml(tmp_path):
    def write(text):
        file = tmp_path / "epd.yaml"
        file.write_text(text)
        return file

    return write


def test_nothing_given_gives_the_defaults():
    assert load_instance_config(None, {}) == InstanceConfig()
    assert load_launch_config(None, {}) == LaunchConfig()


def test_command_line_wins_over_the_file(yaml):
    file = yaml("role: encode\npool_bytes: 512MiB\nlease_s: 5\n")
    config = load_instance_config(file, {"lease_s": "7.5", "router": "http://r:8000"})
    expected = InstanceConfig(role="encode", pool_bytes=512 * 2**20, lease_s=7.5, router="http://r:8000")
    assert config == expected


def test_file_may_take_values_from_the_environment(yaml):
    file = yaml("role: ${oc.env:EPD_NO_SUCH_VARIABLE,prefill}\n")
    assert load_instance_config(file, {}).role == "prefill"


def test_empty_file_is_no_error(yaml):
    assert load_instance_config(yaml(""), {}) == InstanceConfig()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"rôle": "encode"}, "command line: unknown setting rôle; known: role, router, advertise, pool_bytes,"),
        ({"role": "encoder"}, "unknown role 'encoder'"),
        ({"role": ["encode"]}, "command line: role: expected text, got ['encode']"),
        ({"router": "r:8000"}, "router: expected an http(s) URL, got 'r:8000'"),
        ({"pool_bytes": "much"}, "command line: pool_bytes: expected a size such as 512MiB or 1GiB, got 'much'"),
        ({"pool_bytes": None}, "command line: pool_bytes: expected a size such as 512MiB or 1GiB, got None"),
        ({"pool_bytes": 0}, "pool_bytes: expected a positive number, got 0"),
        ({"kv_lease_s": "1.5"}, "command line: kv_lease_s: expected an integer, got '1.5'"),
        ({"kv_lease_s": None}, "command line: kv_lease_s: expected an integer, got None"),
        ({"lease_s": "soon"}, "command line: lease_s: expected a number, got 'soon'"),
        ({"lease_s": float("nan")}, "lease_s: expected a positive number, got nan"),
        ({"fetch_timeout_s": -1}, "fetch_timeout_s: expected a positive number, got -1.0"),
        ({"kv_connector": "mooncake"}, "command line: kv_connector: expected epd or nixl, got 'mooncake'"),
    ],
)
def test_bad_value_of_an_instance_is_refused(values, message):
    with pytest.raises(ConfigError) as refused:
        load_instance_config(None, values)
    assert message in str(refused.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("pool: 1GiB", ": unknown setting pool; known: role,"),
        ("lease_s: [1]", ": lease_s: expected a number, got [1]"),
        ("- role", ": expected a mapping of settings, got a list"),
        ("role: [", "cannot read "),
        ("role: ${nothing}", "cannot read "),
    ],
)
def test_bad_file_is_refused_by_its_name(yaml, text, message):
    file = yaml(text)
    with pytest.raises(ConfigError) as refused:
        load_instance_config(file, {})
    assert message in str(refused.value)
    assert str(file) in str(refused.value)


def test_file_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="cannot read .*none.yaml"):
        load_instance_config(tmp_path / "none.yaml", {})


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("512MiB", 512 * 2**20),
        ("1GiB", 2**30),
        ("1gib", 2**30),
        ("1.5 GB", 1_500_000_000),
        ("2 KiB", 2048),
        ("100", 100),
        (100, 100),
        ("7B", 7),
        ("1TB", 10**12),
    ],
)
def test_size_is_read(text, size):
    assert parse_bytes(text) == size


@pytest.mark.parametrize("text", ["", "GiB", "1 PiB", "-1", "1e9", "1.5.2MB", "0x10", True, 1.5e300, [1]])
def test_other_size_is_refused(text):
    with pytest.raises(ValueError, match="is no size"):
        parse_bytes(text)


@given(st.integers(0, 2**60))
def test_number_of_bytes_stays_itself(number):
    assert parse_bytes(number) == parse_bytes(str(number)) == number


def test_flags_are_the_fields():
    fields = {each.name: each for each in dataclasses.fields(InstanceConfig)}
    assert [flag.name for flag in INSTANCE_FLAGS] == list(fields)
    for flag in INSTANCE_FLAGS:
        assert flag.flag == "--epd-" + flag.name.replace("_", "-")
        assert flag.default == fields[flag.name].default
        assert flag.help.endswith(".")


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [("pool_bytes", "1MiB", 2**20), ("lease_s", "1.5", 1.5), ("kv_lease_s", "9", 9), ("role", "encode", "encode")],
)
def test_flag_reads_what_the_file_reads(yaml, name, text, value):
    (flag,) = [each for each in INSTANCE_FLAGS if each.name == name]
    assert flag.parse(text) == value
    assert getattr(load_instance_config(yaml(f"{name}: {text}"), {}), name) == value


def test_topology_is_read(yaml):
    config = load_launch_config(
        yaml(
            "model: org/model\ntopology: 1E1PD\nrouter: {ttl_s: 9}\ngpus: [0, 2]\n"
            "roles: {all: [--seed, 1], EP: [--ep], decode: [--d]}\nenv: {all: {A: 1}, D: {A: 2}}\n"
        ),
        {"topology": "2E1PD", "router": {"policy": "round_robin"}},
    )
    assert (config.model, config.topology, config.gpus) == ("org/model", "2E1PD", [0, 2])
    assert config.router == RouterOptions(policy="round_robin", ttl_s=9.0)
    assert config.arguments_for(RoleSet.parse("encode+prefill")) == ["--seed", "1", "--ep"]
    assert config.arguments_for(RoleSet.parse("decode")) == ["--seed", "1", "--d"]
    assert config.arguments_for(RoleSet.parse("encode")) == ["--seed", "1"]
    assert config.environment_for(RoleSet.parse("decode")) == {"A": "2"}
    assert config.environment_for(RoleSet.parse("encode")) == {"A": "1"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("router: {polity: x}", "unknown setting router.polity; known: policy, encode_policy, prefill_policy"),
        ("router: {ttl_s: soon}", "router: expected a mapping such as {policy: least_loaded, ttl_s: 6}, got {'ttl_s'"),
        ("router: 5", "router: expected a mapping such as"),
        ("roles: {E: --seed 1}", "roles: expected a mapping from roles to lists of arguments, got {'E': '--seed 1'}"),
        ("roles: {X: [a]}", "'X' is neither 'all' nor a role"),
        ("env: {encoder: {A: 1}}", "'encoder' is neither 'all' nor a role"),
        ("env: {E: [A]}", "env: expected a mapping from roles to mappings of variables, got"),
        ("gpus: some", "gpus: expected auto, none or a list of numbers, got 'some'"),
        ("gpus: [0, 0]", "gpus: expected auto, none or a list of numbers, got [0, 0]"),
        ("gpus: [-1]", "gpus: expected auto, none or a list of numbers, got [-1]"),
        ("share_gpus: perhaps", "share_gpus: expected true or false, got 'perhaps'"),
        ("port: 70000", "port: expected 0 to 65535, got 70000"),
        ("parallel_starts: 0", "parallel_starts: expected a positive number, got 0"),
        ("model: a\ndemo: b", "model a and demo b exclude each other"),
    ],
)
def test_bad_topology_file_is_refused(yaml, text, message):
    with pytest.raises(ConfigError) as refused:
        load_launch_config(yaml(text), {})
    assert message in str(refused.value)


@pytest.mark.parametrize(
    ("given_value", "gpus"),
    [("auto", "auto"), ("none", "none"), ("0,1", [0, 1]), (3, [3]), ([2, 0], [2, 0]), ("7", [7])],
)
def test_gpus_are_read(given_value, gpus):
    assert parse_gpus(given_value) == gpus
