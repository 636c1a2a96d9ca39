# SPDX-License-Identifier: Apache-2.0
"""What is brought in and made room for, with a fetch that the tests hold up as long as they like."""

import asyncio

import pytest

torch = pytest.importorskip("torch")

from tests.unit.transfer.parties import CPU, until  # noqa: E402
from vllm_epd.errors import EmbeddingLostError, PeerError, PoolError, StuckReadError, TransferError  # noqa: E402
from vllm_epd.transfer import wire  # noqa: E402
from vllm_epd.transfer.codec import NONE  # noqa: E402
from vllm_epd.transfer.fetch import Fetched  # noqa: E402
from vllm_epd.transfer.items import Claim, Place, lease_pin  # noqa: E402
from vllm_epd.transfer.landings import Landings, Offered, Offers, Room  # noqa: E402
from vllm_epd.transfer.region import host_region  # noqa: E402
from vllm_epd.transfer.store import EmbeddingStore  # noqa: E402

PAGE = 1024
PAGES = 4
LEASE_S = 60.0


class HeldUpFetcher:
    """Answers each fetch with what the test puts in, in order of the asking."""

    def __init__(self):
        self.asked = []
        self._answers = asyncio.Queue()

    async def fetch(self, handle, spans, *, wait=False):
        self.asked.append(handle.key)
        answer = await self._answers.get()
        if isinstance(answer, BaseException):
            raise answer
        return Fetched((handle.nbytes,), torch.uint8, NONE, None)

    def answer(self, what=None):
        self._answers.put_nowait(what)


class Scene:
    def __init__(self, region, timeout_s):
        self.store = EmbeddingStore(region, PAGE)
        self.fetcher = HeldUpFetcher()
        self.room = Room(self.store)
        self.landings = Landings(self.store, self.fetcher, self.room)
        self.offers = Offers(self.store, self.landings, self.room, LEASE_S, timeout_s)

    def pull(self, number, key="a", nbytes=PAGE):
        handle = wire.EmbeddingHandle(wire.WIRE_VERSION, key, "lease", "epoch", 0, nbytes)
        return asyncio.create_task(self.landings.pull(number, handle))

    def hold(self, key, pages):
        self.store.claim([Claim(key, pages * PAGE, lease_pin(key))])

    def reserve(self, *items):
        return asyncio.create_task(self.offers.reserve([wire.Wanted(*item) for item in items]))

    @property
    def untouched(self):
        state = self.store.state()
        return state.pinned == 0 and state.free_bytes == state.capacity_bytes


@pytest.fixture
async def scene():
    region = host_region(PAGES * PAGE)
    scene = Scene(region, timeout_s=20.0)
    yield scene
    region.close()


@pytest.fixture
async def hasty_scene():
    region = host_region(PAGES * PAGE)
    yield Scene(region, timeout_s=0.05)
    region.close()


async def test_a_landing_is_pinned_until_all_its_loads_are_done(scene):
    scene.fetcher.answer()
    await scene.pull(1)
    scene.landings.load(1, "a", CPU)
    scene.landings.drop(1, 2)
    assert scene.store.state().pinned == 1
    scene.landings.load(1, "a", CPU)
    assert scene.store.state().pinned == 0
    assert scene.store.status("a") is Place.HELD


async def test_a_drop_after_all_loads_takes_effect_at_once(scene):
    scene.fetcher.answer()
    await scene.pull(1)
    scene.landings.load(1, "a", CPU)
    scene.landings.drop(1, 1)
    assert scene.store.state().pinned == 0
    scene.landings.drop(1, 1)


async def test_what_was_dropped_and_evicted_is_lost(scene):
    scene.fetcher.answer()
    await scene.pull(1)
    scene.landings.drop(1, 0)
    scene.hold("b", PAGES)
    with pytest.raises(EmbeddingLostError):
        scene.landings.load(1, "a", CPU)


async def test_a_drop_while_it_is_fetched_ends_the_fetch_and_frees_the_pages(scene):
    pull = scene.pull(1)
    await until(lambda: scene.fetcher.asked)
    scene.landings.drop(1, 0)
    with pytest.raises(asyncio.CancelledError):
        await pull
    assert scene.untouched


async def test_a_drop_while_it_waits_for_room_ends_the_wait(scene):
    scene.hold("other", PAGES)
    pull = scene.pull(1)
    await asyncio.sleep(0)
    scene.landings.drop(1, 0)
    with pytest.raises(asyncio.CancelledError):
        await pull
    scene.store.end_lease("other")
    assert scene.untouched
    assert scene.fetcher.asked == []


async def test_a_drop_in_the_moment_of_landing_is_not_forgotten(scene):
    pull = scene.pull(1)
    await until(lambda: scene.fetcher.asked)
    scene.fetcher.answer()
    bringing = scene.landings._pulls[1]
    bringing.add_done_callback(lambda _: None)
    while not bringing.done():
        await asyncio.sleep(0)
    scene.landings.drop(1, 0)
    await asyncio.wait([pull])
    assert scene.store.state().pinned == 0


async def test_a_failed_fetch_frees_the_pages_and_is_tried_anew_by_the_next(scene):
    scene.fetcher.answer(PeerError("gone"))
    with pytest.raises(PeerError, match="gone"):
        await scene.pull(1)
    assert scene.untouched
    scene.fetcher.answer()
    await scene.pull(2)
    assert scene.store.state().pinned == 1


async def test_the_pages_of_a_stuck_read_are_never_used_again(scene):
    scene.fetcher.answer(StuckReadError("still writing"))
    with pytest.raises(StuckReadError):
        await scene.pull(1, nbytes=3 * PAGE)
    assert scene.store.claim([Claim("b", 2 * PAGE, "pin")]) is None
    assert scene.store.claim([Claim("b", PAGE, "pin")]) == [Place.NEW]


async def test_an_item_pulled_twice_at_once_is_fetched_once(scene):
    pulls = [scene.pull(1), scene.pull(2)]
    await until(lambda: scene.fetcher.asked)
    scene.fetcher.answer()
    await asyncio.gather(*pulls)
    assert scene.fetcher.asked == ["a"]
    assert scene.store.state().fetched == 1
    scene.landings.drop(1, 0)
    assert scene.store.state().pinned == 1
    scene.landings.drop(2, 0)
    assert scene.store.state().pinned == 0


@pytest.mark.parametrize("end", ["drop", "failure"])
async def test_when_the_first_of_two_pulls_ends_the_second_fetches_for_itself(scene, end):
    first = scene.pull(1)
    await until(lambda: scene.fetcher.asked)
    second = scene.pull(2)
    if end == "drop":
        scene.landings.drop(1, 0)
    else:
        scene.fetcher.answer(PeerError("gone"))
    await asyncio.wait([first])
    await until(lambda: len(scene.fetcher.asked) == 2)
    scene.fetcher.answer()
    await second
    assert scene.store.state().pinned == 1
    scene.landings.drop(2, 0)
    assert scene.store.state().pinned == 0


async def test_a_waiting_pull_pins_what_a_third_has_brought_meanwhile(scene):
    first = scene.pull(1)
    await until(lambda: scene.fetcher.asked)
    second = scene.pull(2)
    await until(lambda: scene.store.status("a") is Place.PENDING)
    for _ in range(5):
        await asyncio.sleep(0)
    scene.store.abandon_landing("a")
    scene.store.put("a", torch.ones(PAGE, dtype=torch.uint8))
    await second
    scene.hold("b", PAGES - 1)
    assert scene.store.claim([Claim("c", PAGE, "pin")]) is None
    first.cancel()
    await asyncio.wait([first])


async def test_what_is_encoded_here_meanwhile_is_not_fetched(scene):
    scene.hold("a", 1)
    scene.store.begin_landing("a")
    pull = scene.pull(1)
    for _ in range(5):
        await asyncio.sleep(0)
    assert not pull.done()
    scene.store.end_landing("a", (PAGE,), torch.uint8)
    await pull
    assert scene.fetcher.asked == []
    scene.store.end_lease("a")
    assert scene.store.state().pinned == 1


async def test_what_is_here_is_neither_fetched_nor_kept_waiting_by_a_queue(scene):
    scene.store.put("a", torch.ones(PAGE, dtype=torch.uint8))
    scene.hold("b", PAGES - 1)
    waiting = scene.reserve((9, "c", "c", 2 * PAGE))
    await asyncio.sleep(0)
    await asyncio.wait_for(scene.pull(1), 5)
    assert scene.fetcher.asked == []
    scene.offers.withdraw(["c"])
    await asyncio.wait([waiting])


async def test_a_landing_number_is_used_once(scene):
    scene.fetcher.answer()
    await scene.pull(1)
    with pytest.raises(TransferError, match="a landing 1 already"):
        await scene.pull(1, "b")
    scene.landings.drop(1, 0)
    assert scene.store.state().pinned == 0


async def test_an_item_that_never_fits_is_refused_without_being_fetched(scene):
    with pytest.raises(PoolError, match="do not fit"):
        await scene.pull(1, nbytes=PAGES * PAGE + 1)
    assert scene.fetcher.asked == []
    assert scene.untouched


async def test_a_large_claim_is_not_starved_by_small_ones(scene):
    scene.hold("x", 1)
    scene.hold("y", 3)
    large = scene.reserve((1, "large", "large", PAGES * PAGE))
    await asyncio.sleep(0)
    small = scene.reserve((2, "small", "small", PAGE))
    scene.store.end_lease("x")
    for _ in range(20):
        await asyncio.sleep(0.001)
        assert not large.done()
        assert not small.done()
    scene.store.end_lease("y")
    assert (await large).held == []
    assert not small.done()
    scene.offers.withdraw(["large"])
    assert (await small).held == []


async def test_an_offer_withdrawn_while_it_waits_claims_nothing_and_lets_the_next_on(scene):
    scene.hold("x", PAGES)
    first = scene.reserve((1, "a", "a1", PAGE), (2, "b", "b1", PAGE))
    second = scene.reserve((3, "c", "c1", PAGE))
    await asyncio.sleep(0.005)
    scene.offers.withdraw(["b1"])
    with pytest.raises(asyncio.CancelledError):
        await first
    scene.store.end_lease("x")
    assert (await second).held == []
    assert scene.store.state().pinned == 1
    scene.offers.withdraw(["c1"])
    assert scene.untouched


async def test_a_wait_for_room_ends_with_its_time_limit_and_leaves_nothing(hasty_scene):
    hasty_scene.hold("x", PAGES)
    with pytest.raises(TimeoutError):
        await hasty_scene.reserve((1, "a", "a1", PAGE))
    hasty_scene.store.end_lease("x")
    assert hasty_scene.untouched


async def test_what_is_offered_and_here_is_adopted_and_counted_as_one_hit(scene):
    scene.store.put("a", torch.ones(PAGE, dtype=torch.uint8))
    assert await scene.reserve((1, "a", "a1", PAGE), (2, "b", "b1", PAGE)) == Offered([1], [PAGE, PAGE])
    assert scene.store.state().hits == 1
    scene.offers.withdraw(["a1", "b1"])
    assert scene.store.state().pinned == 1
    scene.landings.drop(1, 0)
    assert scene.store.state().pinned == 0


async def test_what_was_adopted_unseen_is_dropped_with_its_lease(scene):
    scene.store.put("a", torch.ones(PAGE, dtype=torch.uint8))
    assert await scene.reserve((1, "a", "a1", PAGE), (2, "b", "b1", PAGE)) == Offered([1], [PAGE, PAGE])
    scene.offers.withdraw(["a1", "b1"], [1, 2])
    assert scene.store.state().pinned == 0


async def test_an_offer_withdrawn_at_the_moment_of_its_claim_adopts_nothing(scene):
    scene.store.put("a", torch.ones(PAGE, dtype=torch.uint8))
    offering = scene.reserve((1, "a", "a1", PAGE))
    while not scene.store.state().pinned:
        await asyncio.sleep(0)
    scene.offers.withdraw(["a1"], [1])
    await asyncio.wait([offering])
    assert offering.cancelled() or isinstance(offering.exception(), asyncio.CancelledError)
    assert scene.store.state().pinned == 0


async def test_what_is_not_here_is_neither_adopted_nor_leased(scene):
    scene.hold("a", 1)
    assert not scene.landings.adopt(1, "a")
    assert scene.offers.take("a", "late") is None
    scene.store.end_lease("a")
    assert scene.untouched
    assert scene.store.state().hits == 0


async def test_a_lease_taken_later_holds_as_well(scene):
    scene.store.put("a", torch.ones(PAGE, dtype=torch.uint8))
    assert scene.offers.take("a", "late") == PAGE
    assert (scene.store.state().pinned, scene.store.state().hits) == (1, 1)
    scene.offers.withdraw(["late"])
    assert scene.store.state().pinned == 0
