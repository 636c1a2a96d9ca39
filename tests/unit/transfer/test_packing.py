# SPDX-License-Identifier: Apache-2.0
"""In which form items go into a pool, before the guard's verdict and after."""

import logging
from dataclasses import replace

import pytest

torch = pytest.importorskip("torch")

from vllm_epd.errors import PoolError  # noqa: E402
from vllm_epd.transfer.codec import encode  # noqa: E402
from vllm_epd.transfer.codec_guard import TRIAL_ITEMS, CodecGuard  # noqa: E402
from vllm_epd.transfer.items import Claim, Place, lease_pin  # noqa: E402
from vllm_epd.transfer.packing import Packer, Packing  # noqa: E402
from vllm_epd.transfer.region import host_region  # noqa: E402
from vllm_epd.transfer.store import EmbeddingStore  # noqa: E402

CPU = torch.device("cpu")
ROWS, WIDTH = 8, 256
RAW, ENCODED = ROWS * WIDTH * 4, ROWS * (WIDTH + 4)
PAGE = 512
INT8 = Packing("int8", row_bytes=WIDTH * 4, number_bytes=4)


class Later:
    """An event of a device that passes when the test says so."""

    passed = False

    def query(self):
        return self.passed


def embedding(seed=0):
    return torch.randn(ROWS, WIDTH, generator=torch.Generator().manual_seed(seed))


def spiky():
    """One number of each row so large that int8 has no steps left for the others."""
    tensor = torch.ones(ROWS, WIDTH)
    tensor[:, 0] = 260.0
    return tensor


@pytest.fixture
def make_store():
    regions = []

    def make(packing=INT8, pages=1000):
        regions.append(host_region(pages * PAGE))
        return EmbeddingStore(regions[-1], PAGE, packing)

    yield make
    for region in regions:
        region.close()


def room(store, nbytes):
    """What is to be claimed for one item alone."""
    (claimed,) = store.rooms([nbytes])
    return claimed


def offer(store, key, tensor, nbytes=None):
    """As a request does: room first, then the item in the form that has room; what was announced."""
    nbytes = room(store, tensor.nbytes) if nbytes is None else nbytes
    assert store.claim([Claim(key, nbytes, lease_pin(key))]) == [Place.NEW]
    store.put(key, tensor, nbytes)
    return nbytes


def tried(store):
    for number in range(TRIAL_ITEMS):
        assert offer(store, f"trial-{number}", embedding(number)) == RAW
    return store


@pytest.mark.parametrize(
    ("packing", "nbytes", "encoded"),
    [
        (Packing(), RAW, RAW),
        (INT8, RAW, ENCODED),
        (INT8, RAW + 1, RAW + 1),
        (Packing("int8"), RAW, RAW),
        (Packing("fp8", row_bytes=8, number_bytes=2), 80, 80),
        (Packing("fp8", row_bytes=10, number_bytes=2), 100, 90),
        (INT8, 0, 0),
    ],
    ids=["no codec", "codec", "no whole rows", "no rows", "saves nothing", "saves something", "empty"],
)
def test_the_encoded_size_is_reckoned_only_where_it_saves(packing, nbytes, encoded):
    assert packing.encoded(nbytes) == encoded


@pytest.mark.parametrize("changes", [{"codec": "zip"}, {"check": "twice"}])
def test_what_is_no_codec_or_check_is_refused(changes):
    with pytest.raises(AssertionError, match="is none of"):
        Packing(**changes)


@pytest.mark.parametrize(
    ("codec", "check", "finite", "checksum"),
    [
        ("none", "none", False, False),
        ("none", "finite", True, False),
        ("none", "checksum", False, True),
        ("none", "all", True, True),
        ("fp8", "none", True, False),
        ("fp8", "checksum", True, True),
    ],
)
def test_a_codec_brings_the_finite_check_along(codec, check, finite, checksum):
    packing = Packing(codec, check)
    assert (packing.finite, packing.checksum) == (finite, checksum)


def test_the_first_items_go_as_they_are_and_the_next_ones_encoded(make_store, caplog):
    with caplog.at_level(logging.INFO, "vllm_epd.transfer"):
        store = tried(make_store())
    assert caplog.text.count("embeddings are sent as int8") == 1
    for number in range(TRIAL_ITEMS):
        assert torch.equal(store.take(f"trial-{number}", CPU), embedding(number))
    assert offer(store, "next", embedding(99)) == ENCODED
    assert store.size("next") == ENCODED
    taken = store.take("next", CPU)
    assert (taken.dtype, taken.shape) == (torch.float32, (ROWS, WIDTH))
    assert not torch.equal(taken, embedding(99))
    assert torch.allclose(taken, embedding(99), atol=0.02)
    state = store.state()
    assert (state.codec, state.codec_state, state.codec_active, state.codec_refused) == ("int8", "active", 1, 0)
    assert 0 < state.codec_error < 0.02
    assert (state.encoded, state.raw_bytes) == (TRIAL_ITEMS + 1, (TRIAL_ITEMS + 1) * RAW)
    assert state.stored_bytes == TRIAL_ITEMS * RAW + ENCODED


def test_a_codec_beyond_the_bound_is_refused_with_both_numbers_and_nothing_is_encoded(make_store, caplog):
    store = make_store()
    offer(store, "spiky", spiky())
    error = store.state().codec_error
    assert error == pytest.approx(255**0.5 / (255 + 260.0**2) ** 0.5, rel=1e-3)
    assert f"--epd-embedding-codec int8 is refused: it changes a row of an embedding by {error:.4f}" in caplog.text
    assert "more than 0.0500" in caplog.text
    for number in range(TRIAL_ITEMS):
        assert offer(store, f"k{number}", embedding(number)) == RAW
    assert torch.equal(store.take("spiky", CPU), spiky())
    state = store.state()
    assert (state.codec_state, state.codec_active, state.codec_refused) == ("refused", 0, 1)
    assert state.codec_error > 0.05
    assert state.raw_bytes == state.stored_bytes
    assert caplog.text.count("is refused") == 1


def test_what_was_admitted_before_the_verdict_goes_as_it_was_announced(make_store):
    store = make_store()
    early = room(store, RAW)
    store.claim([Claim("early", early, lease_pin("early"))])
    tried(store)
    assert room(store, RAW) == ENCODED
    store.put("early", embedding(5), early)
    assert torch.equal(store.take("early", CPU), embedding(5))
    store.end_lease("early")
    late = room(store, RAW)
    store.claim([Claim("late", late, lease_pin("late")), Claim("rest", store.state().free_bytes - 5 * PAGE, "rest")])
    assert store.state().free_bytes == 0
    store.put("late", embedding(6), late)
    assert store.size("late") == late == ENCODED


def test_a_refusal_fails_nobody_in_a_pool_without_a_page_to_spare(make_store):
    store = make_store(pages=2 * RAW // PAGE)
    for key in ("spiky", "other"):
        assert store.claim([Claim(key, room(store, RAW), lease_pin(key))]) == [Place.NEW]
    assert store.state().free_bytes == 0
    store.put("spiky", spiky(), RAW)
    store.put("other", embedding(), RAW)
    assert store.state().codec_refused
    assert torch.equal(store.take("other", CPU), embedding())


@pytest.mark.parametrize("nbytes", [ENCODED - 1, RAW - 1, 1])
def test_a_size_that_is_no_form_of_the_item_is_refused(make_store, nbytes):
    store = make_store()
    with pytest.raises(PoolError, match=f"{nbytes} bytes were announced for an embedding of {RAW} bytes"):
        store.put("k", embedding(), nbytes)
    assert store.state().items == 0


def test_without_a_codec_nothing_is_encoded_whatever_is_announced(make_store):
    with pytest.raises(PoolError, match="were announced"):
        make_store(Packing()).put("k", embedding(), ENCODED)


def test_integers_are_neither_measured_nor_encoded(make_store):
    store = make_store()
    for number in range(TRIAL_ITEMS + 1):
        offer(store, f"k{number}", torch.arange(WIDTH))
    assert store.state().codec_state == "trial"
    assert torch.equal(store.take("k0", CPU), torch.arange(WIDTH))


@pytest.mark.parametrize(
    "packing",
    [INT8, replace(INT8, codec="fp8"), Packing(check="finite"), Packing(check="all")],
    ids=["int8", "fp8", "on", "all"],
)
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_what_is_not_finite_is_not_to_be_sent(make_store, packing, value):
    store, broken = make_store(packing), embedding()
    broken[3, 4] = value
    offer(store, "broken", broken)
    offer(store, "sound", embedding())
    assert store.grant("broken", "one", 60).objection == "is not finite"
    assert store.grant("sound", "two", 60).objection is None


@pytest.mark.parametrize("codec", ["int8", "fp8"])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_what_is_not_finite_and_encoded_is_not_to_be_sent(make_store, codec, value):
    store, broken = tried(make_store(replace(INT8, codec=codec))), embedding()
    broken[3, 4] = value
    assert offer(store, "broken", broken) == ENCODED
    assert store.grant("broken", "one", 60).objection == "is not finite"
    taken = store.take("broken", CPU)
    assert not taken[3].isfinite().any()
    assert taken[4].isfinite().all()


@pytest.mark.parametrize("codec", ["int8", "fp8"])
def test_what_fits_only_encoded_is_sent_before_the_verdict_if_it_is_sound(make_store, codec):
    store, broken = make_store(replace(INT8, codec=codec), pages=2 * -(-ENCODED // PAGE)), embedding()
    broken[3, 4] = float("inf")
    assert offer(store, "broken", broken) == offer(store, "sound", embedding()) == ENCODED
    assert store.state().codec_state == "trial"
    assert store.grant("broken", "one", 60).objection == "is not finite"
    assert store.grant("sound", "two", 60).objection is None


def test_items_that_are_not_finite_do_not_count_for_the_guard(make_store):
    store, broken = make_store(), torch.full((ROWS, WIDTH), float("nan"))
    for number in range(TRIAL_ITEMS):
        offer(store, f"k{number}", broken)
    assert store.state().codec_state == "trial"
    tried(store)
    assert store.state().codec_state == "active"


@pytest.mark.parametrize("codec", ["int8", "fp8"])
def test_an_item_without_a_row_has_no_room_and_says_nothing_of_the_codec(make_store, codec):
    store, empty = make_store(replace(INT8, codec=codec)), torch.empty(0, WIDTH)
    assert room(store, empty.nbytes) == 0
    with pytest.raises(PoolError, match="of 0 bytes"):
        store.claim([Claim("empty", 0, lease_pin("empty"))])
    with pytest.raises(PoolError, match="of 0 bytes"):
        store.put("empty", empty, 0)
    assert store.state().items == 0
    tried(store)
    assert store.state().codec_state == "active"


@pytest.mark.parametrize("codec", ["int8", "fp8"])
def test_zeros_come_back_as_zeros_and_are_no_error_of_the_codec(make_store, codec):
    store, zeros = make_store(replace(INT8, codec=codec)), torch.zeros(ROWS, WIDTH)
    for number in range(TRIAL_ITEMS):
        offer(store, f"k{number}", zeros)
    assert (store.state().codec_state, store.state().codec_error) == ("active", 0.0)
    assert offer(store, "encoded", zeros) == ENCODED
    assert store.grant("encoded", "one", 60).objection is None
    assert torch.equal(store.take("encoded", CPU), zeros)


def test_without_a_check_what_is_not_finite_is_sent_as_ever(make_store):
    store, broken = make_store(Packing()), torch.full((2, 2), float("inf"))
    offer(store, "k", broken)
    assert store.grant("k", "one", 60).objection is None


def test_a_measurement_counts_once_the_device_has_made_it():
    packer, done = Packer(INT8, CodecGuard(enabled=True, items=1)), Later()
    packer.note(packer.measure(embedding()), done)
    assert packer.room(RAW) == RAW
    done.passed = True
    assert packer.room(RAW) == ENCODED
    assert packer.measure(embedding()) is None


def test_what_has_landed_encoded_is_decoded_whatever_this_store_is_set_to(make_store):
    store, encoded = make_store(Packing()), encode(embedding(), "fp8")
    store.claim([Claim("k", encoded.numel(), "landing")])
    (span,) = store.begin_landing("k")
    store.pieces([span])[0].copy_(encoded)
    store.end_landing("k", (ROWS, WIDTH), torch.float32, "fp8")
    assert torch.allclose(store.take("k", CPU), embedding(), rtol=0.0626, atol=1e-3)
    state = store.state()
    assert (state.fetched_bytes, state.codec, state.codec_state) == (ENCODED, "none", "off")
