# SPDX-License-Identifier: Apache-2.0
"""The router's settings are checked where they are made."""

import pytest

from vllm_epd.errors import ConfigError
from vllm_epd.router.config import RouterConfig, Timeouts
from vllm_epd.types import Role


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"prot": 1}, r"unknown router settings \['prot'\]; known: .*'port'"),
        ({"timeouts": {"encod_s": 1}}, r"unknown router settings \['encod_s'\]"),
        ({"timeouts": {"encode_s": 0}}, r"timeouts\.encode_s must be positive"),
        ({"port": 70000}, "port must be between"),
        ({"policy": "random"}, "unknown routing policy 'random'"),
        ({"decode_policy": "random"}, "unknown routing policy 'random'; known: cache_aware, "),
        ({"order": "lifo"}, "unknown queue order 'lifo'; known: fcfs, sjf, slack"),
        ({"encode_order": "lifo"}, "unknown queue order 'lifo'"),
        ({"max_queue": 0}, "max_queue must be at least 1"),
        ({"ttft_slo_s": 0}, "ttft_slo_s must be positive"),
        ({"irp_degree": 0}, "irp_degree must be auto or an integer of at least 1, got 0"),
        ({"irp_degree": "many"}, "irp_degree must be auto or an integer of at least 1, got 'many'"),
        ({"heartbeat_s": 6.0}, "heartbeat_s must be positive and below ttl_s"),
        ({"heartbeat_s": 0.0}, "heartbeat_s must be positive"),
        ({"fan_out": 0}, "fan_out must be at least 1"),
        ({"workers": 0}, "workers must be at least 1"),
        ({"reuse_entries": 0}, "reuse_entries must be at least 1"),
        ({"timeouts": {"lease_s": 0}}, r"timeouts\.lease_s must be positive"),
        ({"grace_s": -1}, "grace_s must not be negative"),
    ],
)
def test_refused(data, message):
    with pytest.raises(ConfigError, match=message):
        RouterConfig.from_mapping(data)


def test_a_mapping_sets_what_it_names():
    config = RouterConfig.from_mapping({"port": 9000, "timeouts": {"encode_s": 7}})
    assert (config.port, config.timeouts) == (9000, Timeouts(encode_s=7))
    assert config.ttl_s == RouterConfig().ttl_s


@pytest.mark.parametrize(("degree", "limit"), [("auto", None), (1, 1), ("4", 4)])
def test_the_number_of_shards_is_limited_or_left_to_the_idle_encoders(degree, limit):
    assert RouterConfig(irp_degree=degree).irp_limit == limit


def test_each_stage_has_its_limit():
    limits = Timeouts(encode_s=1, prefill_s=2, decode_s=3)
    assert [limits.of(role) for role in Role] == [1, 2, 3]


def test_each_stage_has_its_policy_and_order():
    config = RouterConfig(prefill_policy="cache_aware", encode_order="sjf", order="slack")
    assert [config.policy_of(role) for role in Role] == ["least_loaded", "cache_aware", "least_outstanding"]
    assert [config.order_of(role) for role in Role] == ["sjf", "slack", "slack"]
    config = RouterConfig(policy="round_robin", decode_policy="least_loaded")
    assert [config.policy_of(role) for role in Role] == ["round_robin", "round_robin", "least_loaded"]


def test_the_token_comes_from_the_environment_and_is_not_shown(monkeypatch):
    monkeypatch.setenv("EPD_TOKEN", "secret")
    assert RouterConfig().token == "secret"
    assert "secret" not in repr(RouterConfig())
    monkeypatch.setenv("EPD_TOKEN", "")
    assert RouterConfig().token is None
