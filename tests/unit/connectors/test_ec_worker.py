# SPDX-License-Identifier: Apache-2.0
"""The worker half's offers, into a real agent's pool."""

from collections.abc import Iterator
from uuid import uuid4

import pytest

torch = pytest.importorskip("torch")

from vllm_epd.connectors.ec_worker import WorkerHalf  # noqa: E402
from vllm_epd.connectors.metadata import Load, Merge, Offer, StepMetadata  # noqa: E402
from vllm_epd.connectors.settings import EmbeddingSettings  # noqa: E402
from vllm_epd.transfer.agent import TransferAgent  # noqa: E402
from vllm_epd.transfer.codec_guard import TRIAL_ITEMS  # noqa: E402
from vllm_epd.transfer.items import Place  # noqa: E402
from vllm_epd.types import Fingerprint  # noqa: E402

CPU = torch.device("cpu")
ROWS, WIDTH = 16, 32
RAW, ENCODED = ROWS * WIDTH * 4, ROWS * (WIDTH + 4)


@pytest.fixture
def agent() -> Iterator[TransferAgent]:
    settings = EmbeddingSettings(uuid4().hex, "127.0.0.1", 0, 2**20, 60.0, 5.0, "shm", "UCX", True, "int8")
    fingerprint = Fingerprint("c", "w", "float32", "p", "0.32.0")
    packing = settings.packing(WIDTH * 4, 4)
    made = TransferAgent(settings.agent_config(fingerprint, 0, 0, CPU, offers=False, packing=packing))
    yield made
    made.close()


def offer(half: WorkerHalf, key: str, nbytes: int) -> torch.Tensor:
    tensor = torch.randn(ROWS, WIDTH)
    half.offer_encoded({key: tensor}, key, StepMetadata(offers=(Offer(key, f"lease-{key}", nbytes),)))
    return tensor


def test_an_offer_goes_in_the_form_that_was_announced(agent: TransferAgent) -> None:
    half = WorkerHalf(agent, 60.0, CPU, offers=True)
    for number in range(TRIAL_ITEMS):
        assert agent.store.rooms([RAW]) == [RAW]
        offer(half, f"k{number}", RAW)
    assert agent.store.rooms([RAW]) == [ENCODED]
    as_it_is, encoded = offer(half, "as it is", RAW), offer(half, "encoded", ENCODED)
    assert torch.equal(agent.store.take("as it is", CPU), as_it_is)
    assert torch.allclose(agent.store.take("encoded", CPU), encoded, atol=0.03)
    assert (agent.store.size("as it is"), agent.store.size("encoded")) == (RAW, ENCODED)
    assert agent.store.state().pinned == TRIAL_ITEMS + 2


def test_an_offer_of_an_impossible_size_is_left_out_and_the_engine_goes_on(
    agent: TransferAgent, caplog: pytest.LogCaptureFixture
) -> None:
    half = WorkerHalf(agent, 60.0, CPU, offers=True)
    offer(half, "odd", RAW - 1)
    assert "embedding odd is not offered" in caplog.text
    assert agent.store.status("odd") is None
    offer(half, "sound", RAW)
    assert agent.store.status("sound") is Place.HELD


def test_a_worker_that_does_not_offer_keeps_what_it_has_encoded(agent: TransferAgent) -> None:
    offer(WorkerHalf(agent, 60.0, CPU, offers=False), "k", RAW)
    assert agent.store.state().items == 0


def test_parts_are_loaded_as_one_in_their_order(agent: TransferAgent) -> None:
    half = WorkerHalf(agent, 60.0, CPU, offers=True)
    first, second = offer(half, "k:0/2", RAW), offer(half, "k:1/2", RAW)
    cache: dict[str, torch.Tensor] = {}
    half.load(cache, StepMetadata(merges=(Merge("k", (Load("k:0/2", 0), Load("k:1/2", 1))),)))
    assert list(cache) == ["k"]
    assert torch.equal(cache["k"], torch.cat([first, second]))
