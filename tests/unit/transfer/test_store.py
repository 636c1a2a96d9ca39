# SPDX-License-Identifier: Apache-2.0
"""What is kept, for whom and for how long, over real memory and a clock that the tests turn."""

import pytest

torch = pytest.importorskip("torch")

from vllm_epd.errors import EmbeddingLostError, PoolError  # noqa: E402
from vllm_epd.transfer import store as store_module  # noqa: E402
from vllm_epd.transfer.items import Claim, Place, lease_pin  # noqa: E402
from vllm_epd.transfer.region import host_region  # noqa: E402
from vllm_epd.transfer.store import EmbeddingStore  # noqa: E402

PAGE = 1024
CPU = torch.device("cpu")


class Clock:
    now = 100.0

    def monotonic(self):
        return self.now


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(store_module, "time", clock)
    return clock


@pytest.fixture
def store(clock):
    region = host_region(4 * PAGE)
    yield EmbeddingStore(region, PAGE)
    region.close()


def leased(key, nbytes, lease=None, lease_s=60.0):
    return Claim(key, nbytes, lease_pin(lease or key), lease_s)


def filled(value, nbytes=PAGE):
    return torch.full((nbytes,), value, dtype=torch.uint8)


def test_all_items_are_claimed_or_none(store):
    store.claim([leased("old", PAGE), leased("large", 2 * PAGE)])
    before = store.state()
    assert store.claim([leased("a", PAGE), leased("old", PAGE, "other"), leased("b", PAGE)]) is None
    assert store.state() == before
    assert store.status("a") is None
    assert not store.end_lease("other")
    store.end_lease("large")
    assert store.claim([leased("a", PAGE), leased("b", PAGE)]) == [Place.NEW, Place.NEW]
    assert store.state().free_bytes == PAGE


def test_a_claim_that_does_not_fit_evicts_nothing(store):
    store.put("cached", filled(1, 2 * PAGE))
    store.claim([leased("held", PAGE)])
    assert store.claim([leased("a", 4 * PAGE)]) is None
    assert store.status("cached") is Place.HELD
    assert store.state().evicted == 0


@pytest.mark.parametrize("sizes", [[3 * PAGE, PAGE + 1], [0], [-1, PAGE], [1, 1, 1, 1, 1]])
def test_a_claim_that_never_fits_is_refused_at_once(store, sizes):
    before = store.state()
    with pytest.raises(PoolError, match="do not fit a pool of 4096"):
        store.claim([leased(str(number), nbytes) for number, nbytes in enumerate(sizes)])
    assert store.state() == before


def test_an_item_named_twice_in_a_claim_needs_room_once(store):
    assert store.claim([leased("a", 4 * PAGE, "one"), leased("a", 4 * PAGE, "two")]) == [Place.NEW, Place.PENDING]


def test_a_claim_tells_what_it_finds(store):
    assert store.status("a") is None
    assert store.claim([leased("a", PAGE, "one")]) == [Place.NEW]
    assert store.status("a") is Place.PENDING
    assert store.claim([leased("a", PAGE, "two")]) == [Place.PENDING]
    assert store.state().hits == 0
    store.put("a", filled(1))
    assert store.status("a") is Place.HELD
    assert store.claim([leased("a", PAGE, "three")]) == [Place.HELD]
    assert store.state().hits == 1


@pytest.mark.parametrize("shape", [(), (7,), (1, 300), (4, 3, 5)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int64])
def test_what_is_put_is_taken_bit_for_bit(store, shape, dtype):
    tensor = (torch.randn(shape) * 100).to(dtype)
    store.put("a", tensor)
    taken = store.take("a", CPU)
    assert taken.dtype == dtype
    assert torch.equal(taken, tensor)
    taken.zero_()
    assert torch.equal(store.take("a", CPU), tensor)


def test_an_item_in_scattered_pages_is_whole(store):
    for key in "abcd":
        store.claim([leased(key, PAGE)])
    for key in "ac":
        store.end_lease(key)
    tensor = torch.arange(2 * PAGE, dtype=torch.int16).view(torch.uint8)[: 2 * PAGE]
    store.put("e", tensor)
    assert torch.equal(store.take("e", CPU), tensor)


def test_a_view_that_is_not_contiguous_is_put_in_its_order(store):
    tensor = torch.arange(12).view(3, 4).T
    store.put("a", tensor)
    assert torch.equal(store.take("a", CPU), tensor)


def test_putting_another_size_than_was_claimed_is_refused(store):
    store.claim([leased("a", PAGE)])
    with pytest.raises(PoolError, match="1024 bytes were claimed for 'a', which has 1023"):
        store.put("a", filled(1, PAGE - 1))
    assert store.status("a") is Place.PENDING
    store.put("a", filled(1))


def test_what_nobody_claimed_is_put_as_a_cache_entry_if_there_is_room(store):
    store.put("a", filled(1))
    assert (store.state().pinned, store.state().items) == (0, 1)
    store.claim([leased("b", 4 * PAGE)])
    assert store.status("a") is None
    with pytest.raises(PoolError, match="nothing was claimed for 'c'"):
        store.put("c", filled(1))


def test_a_second_put_changes_nothing(store):
    store.put("a", filled(1))
    store.put("a", filled(2))
    assert torch.equal(store.take("a", CPU), filled(1))
    assert store.state().encoded == 1


def test_when_a_lease_runs_out_unwritten_pages_are_freed_and_written_ones_stay(store, clock):
    store.claim([leased("written", PAGE, lease_s=5), leased("unwritten", PAGE, lease_s=5)])
    store.put("written", filled(1))
    clock.now += 4.9
    assert store.state().pinned == 2
    clock.now += 0.1
    state = store.state()
    assert (state.items, state.pinned, state.expired, state.free_bytes) == (1, 0, 2, 3 * PAGE)
    assert torch.equal(store.take("written", CPU), filled(1))


def test_unwritten_pages_whose_lease_ran_out_are_freed_for_what_nobody_claimed(store, clock):
    store.claim([leased("a", 2 * PAGE, lease_s=5), leased("b", 2 * PAGE, lease_s=5)])
    clock.now += 5
    store.put("c", filled(1))
    assert store.status("a") is store.status("b") is None
    assert store.state().free_bytes == 3 * PAGE


def test_unwritten_pages_go_with_their_last_claim(store):
    store.claim([leased("a", PAGE, "one"), leased("a", PAGE, "two")])
    assert store.end_lease("one")
    assert store.status("a") is Place.PENDING
    assert store.end_lease("two")
    assert store.status("a") is None
    assert store.state().free_bytes == 4 * PAGE


@pytest.mark.parametrize(
    "ask", [lambda store: store.take("a", CPU), lambda store: store.grant("a", "g", 1.0)], ids=["take", "grant"]
)
def test_what_is_not_written_is_lost_to_readers(store, ask):
    with pytest.raises(EmbeddingLostError, match="'a' is not held"):
        ask(store)
    store.claim([leased("a", PAGE)])
    with pytest.raises(EmbeddingLostError):
        ask(store)
    store.put("a", filled(1))
    ask(store)


def test_a_lease_that_was_ended_does_not_begin_any_more(store):
    store.claim([leased("a", PAGE)])
    assert store.end_lease("a")
    assert not store.end_lease("early")
    store.put("a", filled(1))
    assert store.lease("a", "a", 9.0) is None
    assert store.lease("a", "early", 9.0) is None
    assert store.state().pinned == 0
    assert store.lease("a", "other", 9.0) == PAGE


def test_what_is_not_written_can_neither_be_leased_nor_held(store):
    store.claim([leased("a", PAGE)])
    assert store.lease("a", "late", 9.0) is None
    assert not store.hold("a", "landing-1")
    store.put("a", filled(1))
    assert store.lease("a", "late", 9.0) == PAGE
    assert store.hold("a", "landing-1")
    store.end_lease("a")
    store.end_lease("late")
    assert store.state().pinned == 1
    assert store.release("landing-1")
    assert store.state().pinned == 0


def test_a_lease_of_a_peer_names_no_pin_of_another_kind(store):
    store.put("a", filled(1))
    store.grant("a", "grant-1", 60.0)
    store.claim([Claim("b", PAGE, "landing-1")])
    store.begin_landing("b")
    for name in ("grant-1", "landing-1", "copy-1", "copy-2", "lease-a"):
        assert not store.end_lease(name)
    assert store.state().pinned == 2
    assert store.release("grant-1")
    store.end_landing("b", (PAGE,), torch.uint8)
    assert store.release("landing-1")
    assert store.state().pinned == 0


def test_a_landing_dropped_while_it_is_written_keeps_its_pages_until_it_ends(store):
    store.claim([Claim("a", 4 * PAGE, "landing-1")])
    assert store.begin_landing("a") is not None
    assert store.begin_landing("a") is None
    store.release("landing-1")
    assert store.claim([leased("b", PAGE)]) is None
    store.end_landing("a", (4 * PAGE,), torch.uint8)
    assert store.status("a") is Place.HELD
    assert store.claim([leased("b", PAGE)]) == [Place.NEW]
    assert store.state().fetched == 1
    assert store.state().fetched_bytes == 4 * PAGE


def test_an_abandoned_landing_is_lost_to_all_who_claimed_it(store):
    store.claim([Claim("a", PAGE, "landing-1"), leased("a", PAGE)])
    store.begin_landing("a")
    store.abandon_landing("a")
    assert store.status("a") is None
    assert not store.end_lease("a")
    assert store.state().free_bytes == 4 * PAGE


def test_the_encoder_leaves_what_a_transport_fills_to_it(store):
    store.claim([leased("a", PAGE)])
    store.begin_landing("a")
    store.put("a", filled(1))
    assert store.status("a") is Place.PENDING
    store.end_landing("a", (PAGE,), torch.uint8)
    assert (store.state().encoded, store.state().fetched) == (0, 1)


def test_a_grant_ends_once_or_by_itself(store, clock):
    store.put("a", filled(1))
    store.grant("a", "g", 5.0)
    assert store.release("g")
    assert not store.release("g")
    store.grant("a", "h", 5.0)
    clock.now += 5
    assert not store.release("h")
    assert store.state().expired == 1
