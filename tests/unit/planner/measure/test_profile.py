# SPDX-License-Identifier: Apache-2.0
"""The command against fleets whose prices are known."""

import json
from pathlib import Path

import pytest
from rich.console import Console

from tests.fakes.priced import MODEL, PricedFleet
from vllm_epd.cli import main
from vllm_epd.planner.measure import command, series
from vllm_epd.planner.measure.architecture import read_architecture
from vllm_epd.planner.measure.command import Wanted, measure_profile
from vllm_epd.planner.profile.profile import (
    DecodeCost,
    EncodeCost,
    Fit,
    Hardware,
    Link,
    Memory,
    Native,
    Overhead,
    PrefillCost,
    PreprocessCost,
    Profile,
)

PRICES = Profile(
    model=MODEL,
    origin="measured",
    hardware=Hardware("fake", "cpu", 2**30, 2),
    media=Native(patch=14, merge=2, least_pixels=3136, most_pixels=1003520, window=112, whole=0.5),
    preprocess=PreprocessCost(base_s=0.002, per_pixel_s=3e-8, per_patch_s=4e-6),
    encode=EncodeCost(base_s=0.004, per_patch_s=2e-5, per_pair_s=1e-9),
    prefill=PrefillCost(base_s=0.006, per_token_s=5e-5, per_pair_s=4e-9),
    decode=DecodeCost(base_s=0.006, per_sequence_s=0.0006, per_context_s=5e-7),
    links={"shm": Link(latency_s=0.001, bytes_per_s=5e8)},
    memory=Memory(1, 1, 4096, 1024, 1, 1, 0, 4096),
    fit={"decode": Fit(1, 0.0, 0.0)},
    overhead=Overhead(router_s=0.0007, encode_s=0.003, prefill_s=0.003, decode_s=0.004, contention=0.25),
)


@pytest.fixture(autouse=True)
def few_tokens(monkeypatch: pytest.MonkeyPatch):
    """Tokens take real time, which says nothing here: what is made of it is tested on made samples."""
    monkeypatch.setattr(series, "TOGETHER", (1, 4, 8))
    monkeypatch.setattr(series, "GENERATED", 24)
    monkeypatch.setattr(series, "LONG", 96)
    monkeypatch.setattr(command, "this_machine", lambda: Hardware("fake", "cpu", 2**30, 8))
    monkeypatch.setattr(command, "WARMUP", 1)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A model's folder, as far as a profile reads it."""
    vision = {"depth": 4, "window_size": 112, "fullatt_block_indexes": [1, 3], "hidden_size": 8, "intermediate_size": 8}
    text = {"hidden_size": 256, "num_attention_heads": 4, "num_key_value_heads": 2, "num_hidden_layers": 4}
    config = {"model_type": "qwen2_5_vl", "intermediate_size": 512, "dtype": "float32", **text, "vision_config": vision}
    (tmp_path / "config.json").write_text(json.dumps(config))
    processor = {"patch_size": 14, "merge_size": 2, "min_pixels": 3136, "max_pixels": 1003520}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(processor))
    header = {
        "visual.a": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]},
        "model.b": {"dtype": "F32", "shape": [8], "data_offsets": [16, 48]},
    }
    encoded = json.dumps(header).encode()
    (tmp_path / "model.safetensors").write_bytes(len(encoded).to_bytes(8, "little") + encoded + bytes(48))
    return tmp_path


async def measured(folder: Path, *groups: str) -> Profile:
    fleet = PricedFleet(PRICES, str(folder), groups)
    await fleet.start()
    try:
        return await measure_profile(Wanted(MODEL, fleet.url, folder / "out.json", repeats=1), Console(quiet=True))
    finally:
        await fleet.stop()


@pytest.mark.parametrize("groups", [("E", "P", "D"), ("E", "PD"), ("EPD",)])
async def test_the_prices_of_a_fleet_are_found(folder: Path, groups: tuple[str, ...]):
    found = await measured(folder, *groups)
    assert found.media == PRICES.media
    for cost in ("preprocess", "encode", "prefill"):
        for name in getattr(PRICES, cost).__struct_fields__:
            expected = getattr(getattr(PRICES, cost), name)
            assert getattr(getattr(found, cost), name) == pytest.approx(expected, rel=0.02, abs=1e-12), (cost, name)
    assert found.overhead.router_s == pytest.approx(PRICES.overhead.router_s, rel=0.02)
    assert found.overhead.prefill_s == pytest.approx(PRICES.overhead.prefill_s, rel=0.02)
    # Seen in real time, which others use too; what is made of it is tested on made samples.
    assert 0.05 < found.overhead.contention < 0.5 if groups == ("E", "P", "D") else found.overhead.contention == 0
    assert bool(found.links) == ("E" in groups)
    if groups == ("E", "PD"):
        assert found.links["shm"].latency_s == pytest.approx(0.001, rel=0.02)
        assert found.links["shm"].bytes_per_s == pytest.approx(5e8, rel=0.02)


async def test_a_second_profile_asks_for_nothing_that_the_fleet_may_still_know(folder: Path):
    fleet = PricedFleet(PRICES, str(folder), ("EPD",))
    await fleet.start()
    try:
        for _ in range(2):
            await measure_profile(Wanted(MODEL, fleet.url, folder / "out.json", repeats=1), Console(quiet=True))
    finally:
        await fleet.stop()
    assert len(fleet.asked) == len(set(fleet.asked))


def test_the_memory_of_a_model_is_read_from_its_files(folder: Path):
    memory = read_architecture(folder).memory(reserved=0, max_context=4096)
    assert (memory.encoder, memory.language) == (16, 32)
    assert memory.kv_per_token == 2 * 4 * 2 * 64 * 4
    assert memory.embedding_per_token == 256 * 4
    assert memory.max_context == 4096


def test_nobody_there_is_exit_code_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["profile", "m", "--url", "http://127.0.0.1:9", "--out", str(tmp_path / "p.json")]) == 2
    assert "no answer from http://127.0.0.1:9" in capsys.readouterr().err


async def test_another_model_is_refused_with_what_is_served(folder: Path):
    fleet = PricedFleet(PRICES, str(folder), ("EPD",))
    await fleet.start()
    try:
        with pytest.raises(Exception, match="serves priced, not other"):
            await measure_profile(Wanted("other", fleet.url, folder / "out.json"), Console(quiet=True))
    finally:
        await fleet.stop()


async def test_two_instances_of_a_stage_are_refused(folder: Path):
    fleet = PricedFleet(PRICES, str(folder), ("E", "PD", "D"))
    await fleet.start()
    try:
        with pytest.raises(Exception, match="2 instances for decode"):
            await measure_profile(Wanted(MODEL, fleet.url, folder / "out.json"), Console(quiet=True))
    finally:
        await fleet.stop()
