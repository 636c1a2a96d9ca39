# SPDX-License-Identifier: Apache-2.0
import pytest

from vllm_epd.launch.config import load_launch_config
from vllm_epd.launch.plan import Machine, plan_instances
from vllm_epd.planner.fleet import Fleet, Limits
from vllm_epd.planner.profile.memory import room
from vllm_epd.planner.profile.store import load_profile
from vllm_epd.planner.search.deploy import deployment
from vllm_epd.router.config import RouterConfig
from vllm_epd.topology import Topology
from vllm_epd.types import Role, RoleSet

PROFILE = load_profile("internvl2-8b@a100-80gb")
LIMITS = Limits(encode_items=4, prefill_sequences=2, decode_sequences=64, batched_tokens=4096)
FLEET = Fleet(
    Topology.parse("2E1P1D"),
    LIMITS,
    policies={Role.ENCODE: "cache_aware"},
    orders={Role.ENCODE: "sjf", Role.PREFILL: "slack"},
    irp_degree=1,
)


@pytest.fixture
def launched(tmp_path):
    """What the launcher makes of the file."""

    def launch(fleet, whole):
        run = deployment(PROFILE, "OpenGVLab/InternVL2-8B", fleet, Topology.parse(whole), 3400, 2.5)
        file = tmp_path / "plan.yaml"
        file.write_text(run.yaml())
        config = load_launch_config(file, {})
        gpus = tuple(str(number) for number in range(8))
        topology = Topology.parse(config.topology)
        ports = range(9000, 9000 + topology.size)
        return config, plan_instances(topology, config, (), (), ports, Machine({}, gpus, 8))

    return launch


def _flags(instance):
    return dict(zip(instance.arguments[::2], instance.arguments[1::2], strict=True))


def test_launcher_reads_what_is_to_run(launched):
    config, instances = launched(FLEET, "2E1P1D")
    assert config.model == "OpenGVLab/InternVL2-8B"
    flags = {instance.name: _flags(instance) for instance in instances}
    assert set(flags) == {"E0", "E1", "P0", "D0"}
    assert flags["E0"]["--max-num-seqs"] == "4"
    assert int(flags["E0"]["--max-num-batched-tokens"]) == 4 * 3400
    assert (flags["P0"]["--max-num-seqs"], flags["P0"]["--max-num-batched-tokens"]) == ("2", "4096")
    assert (flags["D0"]["--max-num-seqs"], flags["D0"]["--max-num-batched-tokens"]) == ("64", "4096")
    assert "--epd-pool-bytes" not in flags["D0"]


def test_pools_have_the_room_that_was_simulated(launched):
    _, instances = launched(FLEET, "2E1P1D")
    pool = int(_flags(instances[2])["--epd-pool-bytes"])
    simulated = room(PROFILE, RoleSet.from_letters("P"), FLEET).embedding_tokens
    assert pool == simulated * PROFILE.memory.embedding_per_token
    share = float(_flags(instances[2])["--gpu-memory-utilization"])
    assert share * PROFILE.hardware.memory_bytes + pool == pytest.approx(0.9 * PROFILE.hardware.memory_bytes, rel=0.01)


def test_router_takes_its_settings(launched):
    config, _ = launched(FLEET, "2E1P1D")
    given = {name: getattr(config.router, name) for name in ("encode_policy", "encode_order", "prefill_order")}
    router = RouterConfig.from_mapping({**given, "irp_degree": config.router.irp_degree})
    assert (router.encode_policy, router.encode_order, router.prefill_order) == ("cache_aware", "sjf", "slack")
    assert router.irp_limit == 1
    assert config.router.ttft_slo_s == 2.5


def test_whole_instances_have_one_limit_for_both(launched):
    _, instances = launched(Fleet(Topology.parse("4EPD"), LIMITS), "4EPD")
    assert len(instances) == 4
    assert _flags(instances[0])["--max-num-seqs"] == "64"
