# SPDX-License-Identifier: Apache-2.0
"""What an instance's settings make of its agent."""

import pytest

torch = pytest.importorskip("torch")

from vllm_epd.connectors.settings import EmbeddingSettings, KVSettings  # noqa: E402
from vllm_epd.errors import ConfigError  # noqa: E402
from vllm_epd.transfer.packing import Packing  # noqa: E402
from vllm_epd.transfer.shard import Shard  # noqa: E402
from vllm_epd.types import Fingerprint  # noqa: E402

PLAIN = EmbeddingSettings("e", "127.0.0.1", 1, 2**20, 60.0, 5.0, "shm", "UCX", True)
CODEC = EmbeddingSettings("e", "127.0.0.1", 1, 2**20, 60.0, 5.0, "shm", "UCX", True, "int8", "all")
KV = KVSettings("e-kv", "127.0.0.1", 1, 0, 60.0, 5.0, "shm", "UCX")
FINGERPRINT = Fingerprint("c", "w", "bfloat16", "p", "0.32.0")
CPU = torch.device("cpu")


@pytest.mark.parametrize("settings", [PLAIN, CODEC, KV], ids=["plain", "codec", "kv"])
def test_settings_pass_through_what_vllm_carries(settings: EmbeddingSettings | KVSettings) -> None:
    assert type(settings).from_extra_config(settings.to_extra_config()) == settings
    with pytest.raises(ConfigError, match="these settings are"):
        type(settings).from_extra_config({**settings.to_extra_config(), "more": 1})


def test_every_worker_that_offers_parts_has_a_port_of_its_own() -> None:
    made = [
        KV.agent_config(FINGERPRINT, dp, tp, CPU, offers=True, content="KV blocks", shard=Shard(tp, 2))
        for dp in range(2)
        for tp in range(2)
    ]
    assert [each.listen for each in made] == [KV.peer_address(agent) for agent in range(4)]
    assert len({each.listen for each in made}) == len({each.command for each in made}) == 4
    assert [each.identity.shard for each in made] == 2 * [Shard(0, 2), Shard(1, 2)]


def test_who_offers_whole_items_has_one_port_for_each_data_parallel_rank() -> None:
    made = PLAIN.agent_config(FINGERPRINT, 1, 0, CPU, offers=True)
    assert (made.listen, made.identity.shard) == (PLAIN.peer_address(1), Shard())
    assert PLAIN.agent_config(FINGERPRINT, 1, 1, CPU, offers=False).listen is None


def test_kv_settings_know_no_codec() -> None:
    with pytest.raises(ConfigError, match="these settings are"):
        KVSettings.from_extra_config({**KV.to_extra_config(), "codec": "int8"})


def test_an_agent_packs_as_the_flags_and_the_model_say() -> None:
    made = CODEC.agent_config(FINGERPRINT, 0, 0, CPU, offers=True, packing=CODEC.packing(7168, 2))
    assert made.packing == Packing("int8", "all", 7168, 2)
    assert made.packing.encoded(10 * 7168) == 10 * (3584 + 4)
    assert PLAIN.packing(7168, 2) == Packing(row_bytes=7168, number_bytes=2)
    assert KV.agent_config(FINGERPRINT, 0, 0, CPU, offers=True, content="KV blocks").packing == Packing()
