# SPDX-License-Identifier: Apache-2.0
"""What an instance's settings make of its agent."""

import pytest

torch = pytest.importorskip("torch")

from vllm_epd.connectors.settings import EmbeddingSettings, KVSettings  # noqa: E402
from vllm_epd.errors import ConfigError  # noqa: E402
from vllm_epd.transfer.packing import Packing  # noqa: E402
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


def test_kv_settings_know_no_codec() -> None:
    with pytest.raises(ConfigError, match="these settings are"):
        KVSettings.from_extra_config({**KV.to_extra_config(), "codec": "int8"})


def test_an_agent_packs_as_the_flags_and_the_model_say() -> None:
    made = CODEC.agent_config(FINGERPRINT, 0, 0, CPU, offers=True, packing=CODEC.packing(7168, 2))
    assert made.packing == Packing("int8", "all", 7168, 2)
    assert made.packing.encoded(10 * 7168) == 10 * (3584 + 4)
    assert PLAIN.packing(7168, 2) == Packing(row_bytes=7168, number_bytes=2)
    assert KV.agent_config(FINGERPRINT, 0, 0, CPU, offers=True, content="KV blocks").packing == Packing()
