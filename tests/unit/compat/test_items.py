# SPDX-License-Identifier: Apache-2.0
"""How the items of a request are named, and which requests are too large."""

from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("vllm")

from vllm_epd.compat import items  # noqa: E402
from vllm_epd.compat.items import ItemRules  # noqa: E402
from vllm_epd.transfer.keys import PREFIX, content_key  # noqa: E402
from vllm_epd.transfer.pool import PAGE_BYTES  # noqa: E402
from vllm_epd.types import Fingerprint  # noqa: E402

FINGERPRINT = Fingerprint("c", "w", "bfloat16", "p", "0.32.0")
HANDLES = {"k": {"handle": {}}}
OFFER = {"epd": {"offer": True}}


def rules(*, encodes: bool = True, pool_bytes: int = 4 * PAGE_BYTES) -> ItemRules:
    return ItemRules(FINGERPRINT, encodes, pool_bytes, row_bytes=PAGE_BYTES // 4)


def request(*hashes: str, lora: str | None = None, salt: str | None = None, params: Any = None) -> Any:
    """One item of five rows, which take up two pages, for each hash."""
    features = [
        SimpleNamespace(identifier=each, mm_hash=each, mm_position=SimpleNamespace(get_num_embeds=lambda: 5))
        for each in hashes
    ]
    return SimpleNamespace(
        mm_features=features,
        lora_request=lora and SimpleNamespace(lora_path=lora),
        cache_salt=salt,
        sampling_params=SimpleNamespace(extra_args=params and {"ec_transfer_params": params}),
    )


def named(asked: Any, by: ItemRules | None = None) -> list[str]:
    (by or rules()).apply(asked)
    return [feature.identifier for feature in asked.mm_features]


def test_the_same_media_under_the_same_conditions_has_the_same_name() -> None:
    assert named(request("a", "b", "a")) == [named(request("a"))[0], named(request("b"))[0], named(request("a"))[0]]
    assert named(request("a")) != named(request("b"))


def test_another_adapter_salt_or_model_is_another_name() -> None:
    other = ItemRules(Fingerprint("c", "other", "bfloat16", "p", "0.32.0"), True, 100, 8)
    names = [
        named(request("a")),
        named(request("a", lora="/one")),
        named(request("a", lora="/two")),
        named(request("a", salt="s")),
        named(request("a", salt="t")),
        named(request("a", lora="/one", salt="s")),
        named(request("a"), other),
    ]
    assert len({name for (name,) in names}) == len(names)


def test_what_another_instance_has_encoded_keeps_its_name() -> None:
    assert named(request("k"), rules(encodes=False)) == ["k"]
    assert named(request("k", params=HANDLES)) == ["k"]
    assert named(request("other", params=HANDLES))[0].startswith(PREFIX)


@pytest.mark.parametrize("params", [OFFER, HANDLES])
def test_what_does_not_fit_the_pool_is_refused_with_both_sizes(params: Any) -> None:
    from vllm.exceptions import VLLMValidationError

    one, three = request("k", params=params), request("k", "l", "m", params={**params, "l": {}, "m": {}})
    rules(encodes=params is OFFER).apply(one)
    with pytest.raises(VLLMValidationError, match=f"need {6 * PAGE_BYTES} bytes.*has {4 * PAGE_BYTES}"):
        rules(encodes=params is OFFER).apply(three)


def test_what_another_instance_has_encoded_is_as_large_as_its_handle_says() -> None:
    from vllm.exceptions import VLLMValidationError

    small = {key: {"handle": {"nbytes": PAGE_BYTES}} for key in "klm"}
    rules(encodes=False).apply(request("k", "l", "m", params=small))
    large = {"k": {"handle": {"nbytes": 5 * PAGE_BYTES}}}
    with pytest.raises(VLLMValidationError, match=f"need {5 * PAGE_BYTES} bytes"):
        rules(encodes=False).apply(request("k", params=large))


def test_an_item_in_parts_is_as_large_as_all_of_them() -> None:
    from vllm.exceptions import VLLMValidationError

    parts = {"k": {"parts": [{"nbytes": 1}, {"nbytes": PAGE_BYTES + 1}, {"nbytes": PAGE_BYTES}]}}
    rules(encodes=False).apply(request("k", params=parts))
    with pytest.raises(VLLMValidationError, match=f"need {4 * PAGE_BYTES} bytes"):
        rules(encodes=False, pool_bytes=3 * PAGE_BYTES).apply(request("k", params=parts))


def test_a_shard_that_there_cannot_be_is_refused() -> None:
    from vllm.exceptions import VLLMValidationError

    rules().apply(request("k", params={"epd": {"offer": True, "shard": [1, 2]}}))
    with pytest.raises(VLLMValidationError, match="shard"):
        rules().apply(request("k", params={"epd": {"offer": True, "shard": [2, 2]}}))


@pytest.mark.parametrize(
    "entry",
    [None, 7, {}, {"handle": 7}, {"handle": {"nbytes": "many"}}, {"parts": 7}, {"parts": [{"nbytes": 1}, {}]}],
)
def test_what_is_no_handle_is_reckoned_by_its_rows(entry: Any) -> None:
    from vllm.exceptions import VLLMValidationError

    rules(encodes=False, pool_bytes=2 * PAGE_BYTES).apply(request("k", params={"k": entry}))
    with pytest.raises(VLLMValidationError, match=f"need {2 * PAGE_BYTES} bytes"):
        rules(encodes=False, pool_bytes=PAGE_BYTES).apply(request("k", params={"k": entry}))


def test_what_stays_on_this_instance_needs_no_pool() -> None:
    rules(pool_bytes=1).apply(request("k"))


def test_installing_twice_wraps_once(monkeypatch: pytest.MonkeyPatch) -> None:
    from vllm.v1.engine.input_processor import InputProcessor

    plain = InputProcessor.process_inputs
    monkeypatch.setattr(InputProcessor, "process_inputs", plain)
    items.install()
    wrapped = InputProcessor.process_inputs
    assert wrapped is not plain or hasattr(plain, items.RULES)
    items.install()
    assert InputProcessor.process_inputs is wrapped


pieces = st.tuples(st.text(), st.none() | st.text(), st.none() | st.text())


@given(pieces, pieces)
def test_different_pieces_never_share_a_key(one: Any, other: Any) -> None:
    keys = [content_key(item, FINGERPRINT.to_mapping(), lora, salt) for item, lora, salt in (one, other)]
    assert (keys[0] == keys[1]) == (one == other)
