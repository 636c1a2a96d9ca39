# SPDX-License-Identifier: Apache-2.0
"""What each instance is given: arguments, environment, GPUs, command line."""

import sys

import pytest

from vllm_epd.errors import ConfigError
from vllm_epd.launch.commands import base_url, router_command, serve_command
from vllm_epd.launch.config import LaunchConfig, RouterOptions
from vllm_epd.launch.environment import instance_environment
from vllm_epd.launch.plan import Machine, plan_instances
from vllm_epd.topology import Topology

CPU = Machine({"HOME": "/home/me"}, (), 8)


def plan(topology="1E1P1D", config=None, *, common=(), last=(), machine=CPU):
    parsed = Topology.parse(topology)
    config = config or LaunchConfig(model="m")
    instances = plan_instances(parsed, config, common, last, range(100, 100 + parsed.size), machine)
    return {instance.name: instance for instance in instances}


def test_each_instance_has_a_name_a_role_and_a_port():
    instances = plan("2E1PD")
    assert [(name, str(each.roles), each.url) for name, each in instances.items()] == [
        ("E0", "encode", "http://127.0.0.1:100"),
        ("E1", "encode", "http://127.0.0.1:101"),
        ("PD0", "prefill+decode", "http://127.0.0.1:102"),
    ]


def test_later_arguments_are_the_more_special_ones():
    config = LaunchConfig(model="m", roles={"PD": ["--pd"], "encode": ["--e"], "all": ["--all"], "prefill": ["--p"]})
    instances = plan("1E1PD", config, common=["--common"], last=["--last"])
    assert instances["E0"].arguments == ("--common", "--all", "--e", "--last")
    assert instances["PD0"].arguments == ("--common", "--all", "--pd", "--last")


@pytest.mark.parametrize(
    "argument", ["--port", "--port=1", "--host", "--epd-role", "--epd_role=encode", "--epd-router"]
)
def test_what_only_the_launcher_can_say_is_refused(argument):
    with pytest.raises(ConfigError, match="leave it out"):
        plan(last=[argument, "1"])


def test_gpus_follow_the_arguments_of_each_role():
    config = LaunchConfig(model="m", roles={"prefill": ["-tp", "2"]})
    instances = plan(config=config, machine=Machine({}, ("0", "1", "5", "7"), 8))
    visible = {name: each.environment["CUDA_VISIBLE_DEVICES"] for name, each in instances.items()}
    assert visible == {"E0": "0", "P0": "1,5", "D0": "7"}


def test_environment_on_a_cpu():
    given = {"gpus": (), "instances": 3, "cores": 8, "offline": True}
    assert instance_environment({"A": "1"}, {}, **given) == {
        "A": "1",
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "OMP_NUM_THREADS": "2",
        "HF_HUB_OFFLINE": "1",
    }


def test_environment_on_gpus_is_the_users_and_the_devices():
    given = {"gpus": ("1", "2"), "instances": 3, "cores": 8, "offline": False}
    inherited = {"A": "1", "CUDA_VISIBLE_DEVICES": "0,1,2"}
    assert instance_environment(inherited, {}, **given) == {"A": "1", "CUDA_VISIBLE_DEVICES": "1,2"}


def test_users_environment_wins_over_defaults_and_the_configuration_over_both():
    given = {"gpus": (), "instances": 9, "cores": 2, "offline": True}
    inherited = {"OMP_NUM_THREADS": "4", "VLLM_CPU_KVCACHE_SPACE": "2", "HF_HUB_OFFLINE": "0"}
    merged = instance_environment(inherited, {"OMP_NUM_THREADS": "6"}, **given)
    assert merged["OMP_NUM_THREADS"] == "6"
    assert merged["VLLM_CPU_KVCACHE_SPACE"] == "2"
    assert merged["HF_HUB_OFFLINE"] == "0"
    assert instance_environment({}, {}, **given)["OMP_NUM_THREADS"] == "1"


def test_environment_of_a_role_reaches_that_role():
    config = LaunchConfig(model="m", env={"all": {"A": "all", "B": "all"}, "E": {"A": "e"}})
    instances = plan("1E1PD", config)
    assert (instances["E0"].environment["A"], instances["E0"].environment["B"]) == ("e", "all")
    assert instances["PD0"].environment["A"] == "all"
    assert instances["PD0"].environment["HOME"] == "/home/me"


def test_only_a_demo_model_is_served_offline():
    assert "HF_HUB_OFFLINE" not in plan()["E0"].environment
    assert plan(config=LaunchConfig())["E0"].environment["HF_HUB_OFFLINE"] == "1"


def test_command_line_of_an_instance():
    spec = plan("1PD", last=["--max-model-len", "8"])["PD0"]
    command = serve_command("some/model", "http://127.0.0.1:8000")(spec)
    assert command[:4] == [sys.executable, "-P", "-m", "vllm.entrypoints.cli.main"]
    assert " ".join(command[4:]) == (
        "serve some/model --host 127.0.0.1 --port 100 --epd-role prefill+decode"
        " --epd-router http://127.0.0.1:8000 --max-model-len 8"
    )


@pytest.mark.parametrize(
    ("options", "flags"),
    [
        (RouterOptions(), []),
        (RouterOptions(policy="round_robin", ttl_s=9.0), ["--policy", "round_robin", "--ttl", "9.0"]),
        (RouterOptions(encode_order="sjf", ttft_slo_s=2.0), ["--encode-order", "sjf", "--ttft-slo", "2.0"]),
        (RouterOptions(max_queue=5, access_log="-"), ["--max-queue", "5", "--access-log", "-"]),
        (RouterOptions(irp_degree="4"), ["--irp-degree", "4"]),
        (RouterOptions(retries=1, recovery_bytes=0), ["--retries", "1", "--recovery-bytes", "0"]),
        (RouterOptions(workers=4), ["--workers", "4"]),
    ],
)
def test_command_line_of_the_router(options, flags):
    command = router_command("0.0.0.0", 80, options)
    assert command[3:] == ["vllm_epd.cli", "route", "--host", "0.0.0.0", "--port", "80", *flags]


@pytest.mark.parametrize(
    ("host", "url"),
    [
        ("127.0.0.1", "http://127.0.0.1:80"),
        ("0.0.0.0", "http://127.0.0.1:80"),
        ("::", "http://[::1]:80"),
        ("10.0.0.5", "http://10.0.0.5:80"),
        ("localhost", "http://localhost:80"),
    ],
)
def test_router_is_reached_by_an_address_that_can_be_connected_to(host, url):
    assert base_url(host, 80) == url
