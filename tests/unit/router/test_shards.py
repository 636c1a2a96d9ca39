# SPDX-License-Identifier: Apache-2.0
"""Media over several encode instances: the items of a request, and the shards of one item."""

import asyncio
import time

import pytest

from tests.fakes.instance import item_hash
from tests.fakes.tiles import SHARDS, TiledEncoder
from tests.unit.router.conftest import busy, sized, soon, text
from vllm_epd.errors import UpstreamError
from vllm_epd.router.encoders import Part
from vllm_epd.router.instances import Instance
from vllm_epd.router.irp import SHARD_TOKENS
from vllm_epd.router.media import EncodedItem, Shard
from vllm_epd.router.shards import degree, joined, shards_of

LARGE = sized(4032, 3024)
SMALL = sized(448, 448)


def hash_of(part):
    return item_hash(part["image_url"]["url"])


def encoder(shards=True, busy=False):
    info = TiledEncoder(limits=SHARDS if shards else {}).info()
    return Instance(info, 0.0, outstanding=int(busy))


FOUR = [encoder() for _ in range(4)]


@pytest.mark.parametrize(
    ("encoders", "cost", "among", "asked", "expected"),
    [
        (FOUR, 8 * SHARD_TOKENS, 1, None, 4),
        (FOUR, 3 * SHARD_TOKENS, 1, None, 3),
        (FOUR, SHARD_TOKENS, 1, None, 1),
        (FOUR, 8 * SHARD_TOKENS, 2, None, 2),
        (FOUR, 8 * SHARD_TOKENS, 5, None, 1),
        ([*FOUR, encoder(busy=True)], 8 * SHARD_TOKENS, 1, None, 4),
        ([encoder(busy=True)] * 3, 8 * SHARD_TOKENS, 1, None, 1),
        ([*FOUR, encoder(shards=False)], 8 * SHARD_TOKENS, 1, None, 1),
        ([*FOUR, encoder(shards=False)], 8 * SHARD_TOKENS, 1, 4, 1),
        (FOUR, 1, 1, 2, 2),
        (FOUR, 1, 3, 9, 4),
        (FOUR, 8 * SHARD_TOKENS, 1, 1, 1),
    ],
)
def test_as_how_many_shards_a_part_is_encoded(encoders, cost, among, asked, expected):
    part = Part([0], "d", cost)
    assert degree(part, "image", encoders, among, asked, lambda digest: False) == expected


def test_a_part_that_was_made_is_taken_as_it_was_made():
    part = Part([0], "d", 8 * SHARD_TOKENS)
    assert degree(part, "image", FOUR, 1, None, {"d"}.__contains__) == 1
    assert degree(part, "image", FOUR, 1, None, {"d:0/3"}.__contains__) == 3
    assert degree(part, "image", FOUR, 1, 2, {"d:0/3"}.__contains__) == 3


def test_what_lies_behind_a_url_is_not_cut():
    """It may be another image by the time that the second instance fetches it."""
    part = Part([0], None, 8 * SHARD_TOKENS)
    assert degree(part, "image", FOUR, 1, 4, lambda digest: False) == 1


def test_shards_share_the_cost_of_their_part():
    part = Part([1, 3], "d", 12.0)
    assert shards_of(part, 1) == [part]
    shards = shards_of(part, 3)
    assert [(each.places, each.digest, each.cost, each.shard) for each in shards] == [
        ([1, 3], f"d:{index}/3", 4.0, Shard(index, 3)) for index in range(3)
    ]
    assert [each.label for each in shards] == ["e1.0", "e1.1", "e1.2"]


def piece(index, count, name="k"):
    handle = None if index >= count else f"h{index}"
    return EncodedItem(name, "image", {"size": 1}, handle, shard=Shard(index, count))


def test_shards_make_up_an_item_in_their_order():
    item = joined([piece(0, 2), piece(1, 2), piece(2, 2)])
    assert (item.mm_hash, item.metadata, item.parts, item.handle) == ("k", {"size": 1}, ("h0", "h1"), None)
    assert item.is_offered


def test_an_item_that_turned_out_to_be_whole_is_that_itself():
    whole = EncodedItem("k", "image", {}, "h")
    assert joined([whole]) is whole
    assert joined([whole, piece(1, 1), piece(2, 1)]) is whole


@pytest.mark.parametrize(
    "pieces",
    [
        [piece(0, 2), piece(1, 2, "other")],
        [piece(0, 2), piece(1, 3)],
        [piece(0, 3), piece(1, 3)],
        [piece(1, 2), piece(0, 2)],
        [piece(1, 1), piece(2, 1)],
    ],
    ids=["another item", "other counts", "one missing", "out of order", "nothing"],
)
def test_shards_that_do_not_make_up_one_item_are_refused(pieces):
    with pytest.raises(UpstreamError, match="do not make up one item"):
        joined(pieces)


async def encoders(cluster, count, **more):
    return [await cluster.add("E", TiledEncoder, **more) for _ in range(count)]


async def timed(cluster, content):
    begun = time.perf_counter()
    answer = await cluster.chat(content)
    assert answer.status == 200, answer.raw
    return time.perf_counter() - begun, answer


async def test_a_large_image_is_shared_out_and_prefill_gets_its_parts_in_order(cluster):
    fakes = await encoders(cluster, 4)
    prefill, _ = await cluster.up("P", "D")
    _, answer = await timed(cluster, [LARGE, text("so")])
    assert answer.text == f"<{hash_of(LARGE)}> so"
    tiles = [tiles for fake in fakes for _, tiles in fake.encoded]
    assert sorted((each.start, each.stop) for each in tiles) == [(0, 3), (3, 6), (6, 9), (9, 12)]
    assert all(len(fake.encoded) == 1 for fake in fakes)
    (body,) = prefill.bodies("prefill")
    ((key, entry),) = body["ec_transfer_params"].items()
    assert [handle["key"] for handle in entry["parts"]] == [f"{key}:{index}/4" for index in range(4)]
    await cluster.nothing_held()


async def test_what_is_small_or_of_many_goes_to_one_encoder_each(cluster):
    fakes = await encoders(cluster, 2)
    await cluster.up("P", "D")
    await timed(cluster, [SMALL])
    await timed(cluster, [sized(4032, 3024, tag) for tag in range(1, 3)])
    assert [tiles for fake in fakes for _, tiles in fake.encoded] == [range(12)] * 3
    assert sorted(len(fake.encoded) for fake in fakes) == [1, 2]


async def test_one_is_the_way_to_have_nothing_cut(cluster_with):
    async with cluster_with(irp_degree=1) as cluster:
        one, other = await encoders(cluster, 2)
        await cluster.up("P", "D")
        await timed(cluster, [LARGE])
        assert [tiles for _, tiles in (*one.encoded, *other.encoded)] == [range(12)]


async def test_an_item_of_fewer_tiles_than_shards_has_as_many_parts_as_tiles(cluster):
    fakes = await encoders(cluster, 4, tiles=3)
    prefill, _ = await cluster.up("P", "D")
    await timed(cluster, [LARGE])
    assert sorted(len(tiles) for fake in fakes for _, tiles in fake.encoded) == [0, 1, 1, 1]
    (entry,) = prefill.bodies("prefill")[0]["ec_transfer_params"].values()
    assert len(entry["parts"]) == 3
    await cluster.nothing_held()


async def test_an_item_of_one_tile_is_whole(cluster):
    await encoders(cluster, 4, tiles=1)
    prefill, _ = await cluster.up("P", "D")
    await timed(cluster, [LARGE])
    (entry,) = prefill.bodies("prefill")[0]["ec_transfer_params"].values()
    assert entry["handle"]["key"] == hash_of(LARGE)
    await cluster.nothing_held()


async def test_shards_are_used_again_by_whichever_request(cluster):
    fakes = await encoders(cluster, 3)
    prefills = await cluster.up("P", "P", "D")
    hold = asyncio.Event()
    for fake in fakes:
        fake.does.hold = hold
    first = [asyncio.create_task(cluster.chat([LARGE])) for _ in range(4)]
    await soon(lambda: sum(len(fake.seen) for fake in fakes) == 3)
    hold.set()
    for answer in await asyncio.gather(*first):
        assert answer.text == f"<{hash_of(LARGE)}>"
    with busy(cluster.instance(fakes[0])):
        await timed(cluster, [LARGE])
    assert [len(fake.encoded) for fake in fakes] == [1, 1, 1]
    assert sum(len(fake.lease_calls) for fake in fakes) == 4 * 3
    told = [
        entry
        for fake in prefills[:2]
        for body in fake.bodies("prefill")
        for entry in body["ec_transfer_params"].values()
    ]
    leases = [handle["lease"] for entry in told for handle in entry["parts"]]
    assert len(set(leases)) == len(leases) == 5 * 3
    await cluster.nothing_held()


async def test_a_shard_that_is_gone_is_made_again_alone(cluster):
    fakes = await encoders(cluster, 2)
    await cluster.up("P", "D")
    await timed(cluster, [LARGE])
    fakes[1].evict()
    await timed(cluster, [LARGE])
    assert [len(fake.encoded) for fake in fakes] in ([1, 2], [2, 1])
    await cluster.nothing_held()


async def test_a_shard_whose_encoder_fails_is_encoded_by_another(cluster):
    good, bad = await encoders(cluster, 2)
    await cluster.up("P", "D")
    bad.does.status, bad.does.body = 500, b"no"
    _, answer = await timed(cluster, [LARGE])
    assert answer.text == f"<{hash_of(LARGE)}>"
    assert len(good.encoded) == 2
    await cluster.nothing_held()


def changed(entry):
    def change(answer):
        (told,) = answer["ec_transfer_params"].values()
        told |= entry

    return change


@pytest.mark.parametrize("entry", [{"item": 7}, {"shard": [1]}, {"shard": None}, {"handle": None}])
async def test_an_encoder_that_tells_no_usable_shard_is_passed_over(cluster, entry):
    good, bad = await encoders(cluster, 2)
    await cluster.up("P", "D")
    bad.does.change = changed(entry)
    _, answer = await timed(cluster, [LARGE])
    assert answer.text == f"<{hash_of(LARGE)}>"
    assert len(good.encoded) == 2
    bad.leases.clear()  # what nobody could read the lease of runs out
    await cluster.nothing_held()


async def test_shards_of_two_items_fail_the_request_and_are_given_back(cluster):
    one, _ = await encoders(cluster, 2)
    await cluster.up("P", "D")
    one.does.change = changed({"item": "another"})
    answer = await cluster.chat([LARGE])
    assert (answer.status, "do not make up one item" in answer.error["message"]) == (502, True)
    await cluster.nothing_held()


@pytest.mark.parametrize(
    ("content", "tiles", "share"),
    [([sized(448, 448, tag) for tag in range(8)], 6, 1 / 3.5), ([LARGE], 12, 1 / 3)],
    ids=["eight images", "one large image"],
)
async def test_four_encoders_take_a_fraction_of_the_time_of_one(cluster_with, content, tiles, share):
    """Each tile takes the same time, on whichever encoder."""
    took = {}
    for count in (1, 4):
        async with cluster_with() as cluster:
            await encoders(cluster, count, tiles=tiles, tile_s=0.05)
            await cluster.up("P", "D")
            took[count], _ = await timed(cluster, content)
    assert took[4] <= took[1] * share, took
