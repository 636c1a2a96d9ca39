# SPDX-License-Identifier: Apache-2.0
"""An item of a request cut down to one part of it."""

import pickle
from types import SimpleNamespace
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("vllm")

from hypothesis import given  # noqa: E402
from hypothesis import strategies as st  # noqa: E402
from vllm.multimodal.inputs import (  # noqa: E402
    MultiModalBatchedField,
    MultiModalFeatureSpec,
    MultiModalFieldElem,
    MultiModalKwargsItem,
    PlaceholderRange,
)

from vllm_epd.compat import sharding  # noqa: E402
from vllm_epd.compat.cuts import CUTS, cuts_of  # noqa: E402
from vllm_epd.compat.metadata import describe_items  # noqa: E402
from vllm_epd.compat.shards import ShardFeature, shard_features  # noqa: E402
from vllm_epd.types import ROLE_ENV  # noqa: E402

INTERNVL = CUTS["InternVLChatModel"]
RESOLVER = SimpleNamespace(fields_for=lambda modality: {"image_num_patches"})
ROWS = 2
"""Per tile."""


def tiles(count: int, mask: Any = None, **more: Any) -> MultiModalFeatureSpec:
    """An image of so many tiles, each filled with its number."""
    data = {
        "pixel_values_flat": torch.arange(float(count)).repeat_interleave(4).reshape(count, 2, 2),
        "image_num_patches": torch.tensor(count),
        "image_token_id": torch.tensor(7),
        **more,
    }
    item = MultiModalKwargsItem(
        {name: MultiModalFieldElem(value, MultiModalBatchedField()) for name, value in data.items()}
    )
    length = ROWS * count if mask is None else len(mask)
    return MultiModalFeatureSpec(item, "image", "key", PlaceholderRange(3, length, mask), "hash")


def parts(feature: MultiModalFeatureSpec, asked: int) -> list[ShardFeature]:
    found = [shard_features([feature], index, asked, INTERNVL)[0] for index in range(asked)]
    assert all(isinstance(each, ShardFeature) for each in found)
    return found  # type: ignore[return-value]


@given(st.integers(2, 20), st.integers(2, 20))
def test_parts_hold_every_unit_once_in_order(count: int, asked: int) -> None:
    found = parts(tiles(count), asked)
    number = min(count, asked)
    full, empty = found[:number], found[number:]
    pixels = torch.cat([part.data["pixel_values_flat"].data for part in full])
    assert torch.equal(pixels, tiles(count).data["pixel_values_flat"].data)
    for part in full:
        held = len(part.data["pixel_values_flat"].data)
        assert (int(part.data["image_num_patches"].data), part.mm_position.get_num_embeds()) == (held, ROWS * held)
        assert held
    assert [part.identifier for part in full] == [f"key:{index}/{number}" for index in range(number)]
    assert all(part.mm_position.get_num_embeds() == 0 and "pixel_values_flat" not in part.data for part in empty)
    masks = torch.stack([part.mm_position.is_embed for part in found])
    assert masks.sum(0).tolist() == [1] * (ROWS * count)


def test_rows_keep_their_places_among_other_tokens() -> None:
    mask = torch.tensor([0, 1, 1, 0, 1, 1, 0], dtype=torch.bool)
    one, two = parts(tiles(2, mask), 2)
    assert one.mm_position.is_embed.tolist() == [False, True, True, False, False, False, False]
    assert two.mm_position.is_embed.tolist() == [False, False, False, False, True, True, False]
    assert (one.mm_position.offset, one.mm_position.length) == (3, 7)


def test_the_item_itself_is_left_as_it_was() -> None:
    whole = tiles(4)
    part = parts(whole, 2)[1]
    part.data["pixel_values_flat"].data.fill_(-1)
    assert torch.equal(whole.data["pixel_values_flat"].data, tiles(4).data["pixel_values_flat"].data)
    assert (whole.identifier, int(whole.data["image_num_patches"].data)) == ("key", 4)


def test_a_part_goes_to_other_processes_without_the_rest() -> None:
    part = parts(tiles(1000), 4)[1]
    sent = pickle.dumps(part)
    assert len(sent) < len(pickle.dumps(tiles(1000))) / 2
    got = pickle.loads(sent)
    assert (got.identifier, got.whole.identifier) == ("key:1/4", "key")
    assert torch.equal(got.data["pixel_values_flat"].data, part.data["pixel_values_flat"].data)


@pytest.mark.parametrize(
    "feature",
    [
        tiles(1),
        tiles(4, unheard_of=torch.zeros(1)),
        tiles(3, torch.ones(7, dtype=torch.bool)),
        MultiModalFeatureSpec(None, "image", "key", PlaceholderRange(3, 8), "hash"),
        MultiModalFeatureSpec(tiles(4).data, "audio", "key", PlaceholderRange(3, 8), "hash"),
    ],
    ids=["one unit", "unknown field", "rows that do not divide", "no data", "no cut"],
)
def test_what_cannot_be_cut_is_its_own_first_part_and_has_no_other(feature: MultiModalFeatureSpec) -> None:
    first, second = (shard_features([feature], index, 2, INTERNVL)[0] for index in range(2))
    assert first is feature
    assert isinstance(second, ShardFeature)
    assert (second.mm_position.get_num_embeds(), second.identifier) == (0, "key:1/1")


def test_a_part_is_described_as_the_whole() -> None:
    whole = describe_items([tiles(5)], RESOLVER)["key"]
    for index, part in enumerate(parts(tiles(5), 6)):
        ((key, entry),) = describe_items([part], RESOLVER).items()
        assert key == part.identifier
        assert entry == {**whole, "item": "key", "shard": [index, 5]}


@pytest.mark.parametrize("params", [None, {}, {"epd": {"offer": True}}, {"epd": 3}, {"key": {"handle": {}}}])
def test_without_a_shard_the_whole_is_asked_for(params: Any) -> None:
    assert sharding.asked_shard(params) is None


def test_which_shard_is_asked_for() -> None:
    assert sharding.asked_shard({"epd": {"offer": True, "shard": [1, 3]}}) == (1, 3)


@pytest.mark.parametrize("shard", [[3, 3], [-1, 3], [0], "0/2", [0, 2.0], {}])
def test_an_impossible_shard_is_refused(shard: Any) -> None:
    with pytest.raises(ValueError, match="index, count"):
        sharding.asked_shard({"epd": {"offer": True, "shard": shard}})


def test_a_shard_that_is_offered_to_nobody_is_refused() -> None:
    with pytest.raises(ValueError, match="offer"):
        sharding.asked_shard({"epd": {"shard": [0, 2]}})


def model(architecture: str, *, pruning: float | None = None, version: float = 2.6) -> Any:
    return SimpleNamespace(
        architecture=architecture,
        multimodal_config=SimpleNamespace(video_pruning_rate=pruning),
        hf_config=SimpleNamespace(version=version),
    )


def test_what_is_cut_of_which_model() -> None:
    assert set(cuts_of(model("InternVLChatModel"))) == {"image", "video"}
    assert set(cuts_of(model("Qwen2_5_VLForConditionalGeneration"))) == {"video"}
    assert set(cuts_of(model("MiniCPMV"))) == {"image", "video"}
    assert cuts_of(model("MiniCPMV", version=2.5)) == {}
    assert cuts_of(model("Qwen2_5_VLForConditionalGeneration", pruning=0.5)) == {}
    assert cuts_of(model("LlavaForConditionalGeneration")) == {}


@pytest.fixture
def engine_core(monkeypatch: pytest.MonkeyPatch) -> Any:
    """vLLM's engine core, whose own preprocessing hands back what it is given."""
    from vllm.v1.engine.core import EngineCore

    monkeypatch.setattr(EngineCore, "preprocess_add_request", lambda self, request: (request, 0))
    return EngineCore


def cut_down(engine_core: Any, shard: list[int]) -> Any:
    core = SimpleNamespace(vllm_config=SimpleNamespace(model_config=model("InternVLChatModel")))
    params = {"epd": {"offer": True, "shard": shard}}
    request, _ = engine_core.preprocess_add_request(
        core, SimpleNamespace(mm_features=[tiles(4)], ec_transfer_params=params)
    )
    return request.mm_features[0].identifier


def test_the_engine_core_cuts_items_down_once(engine_core: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(ROLE_ENV, "encode")
    sharding.install()
    wrapped = engine_core.preprocess_add_request
    sharding.install()
    assert engine_core.preprocess_add_request is wrapped
    assert cut_down(engine_core, [1, 2]) == "key:1/2"


def test_an_instance_with_a_language_model_takes_items_whole(engine_core: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(ROLE_ENV, "encode+prefill")
    sharding.install()
    assert cut_down(engine_core, [1, 2]) == "key"
