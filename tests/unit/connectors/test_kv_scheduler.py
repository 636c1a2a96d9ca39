# SPDX-License-Identifier: Apache-2.0
"""The scheduler halves of the KV connector, with requests and a line to the agents that are made here."""

from types import SimpleNamespace
from typing import Any

import pytest

from tests.unit.connectors.links import FakeLink
from vllm_epd.connectors.desk import Desk
from vllm_epd.connectors.kv_keys import ChunkShape, cut
from vllm_epd.connectors.kv_metadata import LoadBlocks
from vllm_epd.connectors.kv_params import RemoteKV
from vllm_epd.connectors.kv_scheduler import KVConsumerHalf, KVProducerHalf
from vllm_epd.transfer import wire

SHAPE = ChunkShape(block_tokens=4, block_bytes=100, chunk_blocks=2)
PROMPT = list(range(100, 119))
"""Two full chunks of two blocks, and one of a block."""
KEYS = [chunk.key for chunk in cut(PROMPT, (), (None, None), SHAPE)]
BLOCKS = [7, 3, 5, 1, 9]
OFFER = {"epd": {"offer": "t"}}


def request(name: str, params: Any, tokens: list[int] | None = None, **fields: Any) -> Any:
    prompt = PROMPT if tokens is None else tokens
    defaults = {
        "request_id": name,
        "prompt_token_ids": prompt,
        "num_tokens": len(prompt),
        "num_computed_tokens": 0,
        "mm_features": [],
        "kv_transfer_params": params,
        "lora_request": None,
        "cache_salt": None,
        "output_token_ids": [42],
        "status": SimpleNamespace(name="FINISHED_LENGTH_CAPPED"),
    }
    return SimpleNamespace(**defaults | fields)


@pytest.fixture
def producer(desk: Desk) -> KVProducerHalf:
    return KVProducerHalf(desk, "epoch-kv", 1, SHAPE)


@pytest.fixture
def consumer(desk: Desk) -> KVConsumerHalf:
    return KVConsumerHalf(desk, SHAPE)


def reserved(producer: KVProducerHalf, desk: Desk, link: FakeLink, asked: Any, held: tuple[int, ...] = ()) -> None:
    """`asked` has its room."""
    assert not producer.available(asked)
    items = link.reserved[-1]
    sizes = [item.nbytes for item in items]
    link.reports = [wire.Reserved(items[0].landing, [items[index].landing for index in held], sizes)]
    desk.collect()
    assert producer.available(asked)


def saves(producer: KVProducerHalf, asked: Any, tokens: int) -> list[tuple[str, tuple[int, ...]]]:
    """What the step that computes `tokens` saves."""
    orders = producer.step_saves({asked.request_id: tokens}, lambda name: BLOCKS)
    asked.num_computed_tokens += tokens
    return [(order.key, order.block_ids) for order in orders]


def test_a_prompt_waits_for_room_for_all_its_chunks(producer: KVProducerHalf, desk: Desk, link: FakeLink) -> None:
    reserved(producer, desk, link, request("r", OFFER))
    assert [(item.key, item.lease, item.nbytes) for item in link.reserved[0]] == [
        (KEYS[0], "t:0", 200),
        (KEYS[1], "t:2", 200),
        (KEYS[2], "t:4", 100),
    ]
    assert link.transfers == ["t"]
    assert len(link.reserved) == 1


def test_chunks_are_saved_as_prefill_completes_them(producer: KVProducerHalf, desk: Desk, link: FakeLink) -> None:
    asked = request("r", OFFER)
    reserved(producer, desk, link, asked)
    assert saves(producer, asked, 7) == []
    assert saves(producer, asked, 2) == [(KEYS[0], (7, 3))]
    assert saves(producer, asked, 10) == [(KEYS[1], (5, 1)), (KEYS[2], (9,))]
    assert producer.finish(asked) == {
        "epd": {"transfer": "t", "epoch": "epoch-kv", "rank": 1, "tokens": 19, "first": 42}
    }
    assert link.withdrawn == []


def test_what_the_prefix_cache_holds_is_saved_with_the_first_step(
    producer: KVProducerHalf, desk: Desk, link: FakeLink
) -> None:
    asked = request("r", OFFER)
    reserved(producer, desk, link, asked)
    asked.num_computed_tokens = 12
    assert [key for key, _ in saves(producer, asked, 7)] == KEYS


def test_what_the_pool_held_already_is_not_kept_twice(producer: KVProducerHalf, desk: Desk, link: FakeLink) -> None:
    reserved(producer, desk, link, request("r", OFFER), held=(0,))
    assert [drop.number for drop in link.dropped] == [link.reserved[0][0].landing]


@pytest.mark.parametrize("tokens", [9, 19])
def test_an_aborted_prompt_gives_its_room_back(
    producer: KVProducerHalf, desk: Desk, link: FakeLink, tokens: int
) -> None:
    asked = request("r", OFFER, status=SimpleNamespace(name="FINISHED_ABORTED"))
    reserved(producer, desk, link, asked)
    saves(producer, asked, tokens)
    assert producer.finish(asked) is None
    assert link.withdrawn == ["t:0", "t:2", "t:4"]
    assert producer.step_saves({"r": 1}, lambda name: BLOCKS) == ()


def test_without_room_in_time_a_prompt_is_prefilled_and_not_offered(
    producer: KVProducerHalf, desk: Desk, link: FakeLink, caplog: pytest.LogCaptureFixture
) -> None:
    asked = request("r", OFFER)
    assert not producer.available(asked)
    link.reports = [wire.ReserveFailed(link.reserved[0][0].landing, "no room today")]
    desk.collect()
    assert producer.available(asked)
    assert saves(producer, asked, 19) == []
    assert producer.finish(asked) is None
    assert "no room today" in caplog.text


@pytest.mark.parametrize("params", [None, {}, {"epd": {}}, {"epd": 7}, {"epd": {"offer": ""}}, {"epd": {"offer": 1}}])
def test_who_wants_nothing_offered_waits_for_nothing(producer: KVProducerHalf, params: Any, link: FakeLink) -> None:
    asked = request("r", params)
    assert producer.available(asked)
    assert saves(producer, asked, 19) == []
    assert producer.finish(asked) is None
    assert link.reserved == []


REMOTE = RemoteKV("t", "epoch-kv", 1, len(PROMPT)).answer(42)


def landed(desk: Desk, link: FakeLink, *keys: str) -> None:
    """The agents have brought these in."""
    numbers = {key: number for number, key in link.pulled}
    link.reports = [wire.Pulled(numbers[key]) for key in keys]
    desk.collect()


def test_a_prompt_waits_until_its_chunks_are_here(consumer: KVConsumerHalf, desk: Desk, link: FakeLink) -> None:
    asked = request("r", REMOTE)
    assert consumer.matched(asked, 0) is None
    assert [key for _, key in link.pulled] == KEYS
    landed(desk, link, *KEYS[:2])
    assert consumer.matched(asked, 0) is None
    assert link.released == ["t:0", "t:2"], "the producer may let go of what is here"
    landed(desk, link, KEYS[2])
    assert consumer.matched(asked, 0) == 18, "one token is left to compute"
    assert len(link.pulled) == 3


def test_blocks_are_loaded_with_the_step_that_allocates_them(
    consumer: KVConsumerHalf, desk: Desk, link: FakeLink
) -> None:
    asked = request("r", REMOTE)
    consumer.matched(asked, 0)
    landed(desk, link, *KEYS)
    matched = consumer.matched(asked, 0)
    assert matched is not None
    consumer.allocated(asked, BLOCKS, matched)
    numbers = {key: number for number, key in link.pulled}
    assert consumer.step_loads() == (
        LoadBlocks(KEYS[0], numbers[KEYS[0]], 0, (7, 3)),
        LoadBlocks(KEYS[1], numbers[KEYS[1]], 0, (5, 1)),
        LoadBlocks(KEYS[2], numbers[KEYS[2]], 0, (9,)),
    )
    assert {(drop.number, drop.loads) for drop in link.dropped} == {(number, 1) for number in numbers.values()}
    assert link.forgotten == ["t"]
    assert sorted(link.released) == ["t:0", "t:2", "t:4"]
    assert consumer.step_loads() == ()
    assert consumer.matched(asked, 0) == 0, "a preempted request is computed here"


def test_only_what_the_prefix_cache_lacks_is_fetched(consumer: KVConsumerHalf, desk: Desk, link: FakeLink) -> None:
    asked = request("r", REMOTE)
    assert consumer.matched(asked, 12) is None
    assert [key for _, key in link.pulled] == KEYS[1:]
    assert link.released == ["t:0"]
    landed(desk, link, *KEYS[1:])
    assert consumer.matched(asked, 12) == 6
    consumer.allocated(asked, BLOCKS, 6)
    assert [(load.skip, load.block_ids) for load in consumer.step_loads()] == [(1, (1,)), (0, (9,))]


def test_a_prompt_that_the_cache_holds_moves_nothing(consumer: KVConsumerHalf, link: FakeLink) -> None:
    assert consumer.matched(request("r", REMOTE), 18) == 0
    assert link.pulled == []
    assert sorted(link.released) == ["t:0", "t:2", "t:4"]


def test_the_first_token_is_computed_here_where_it_follows_the_prompt(
    consumer: KVConsumerHalf, desk: Desk, link: FakeLink
) -> None:
    asked = request("r", REMOTE, [*PROMPT, 42])
    consumer.matched(asked, 0)
    assert [key for _, key in link.pulled] == KEYS
    landed(desk, link, *KEYS)
    assert consumer.matched(asked, 0) == 19


def test_what_cannot_be_had_is_computed_here(consumer: KVConsumerHalf, desk: Desk, link: FakeLink) -> None:
    asked = request("r", REMOTE)
    consumer.matched(asked, 0)
    numbers = {key: number for number, key in link.pulled}
    link.reports = [wire.Pulled(numbers[KEYS[0]]), wire.PullFailed(numbers[KEYS[1]], "P is gone")]
    desk.collect()
    assert consumer.matched(asked, 0) == 0
    assert consumer.recomputed == 1
    assert sorted(link.released) == ["t:0", "t:2", "t:4"]
    assert {drop.number for drop in link.dropped} >= {numbers[KEYS[0]]}
    consumer.allocated(asked, BLOCKS, 0)
    assert consumer.step_loads() == ()


def test_an_aborted_request_gives_everything_back(consumer: KVConsumerHalf, desk: Desk, link: FakeLink) -> None:
    asked = request("r", REMOTE)
    consumer.matched(asked, 0)
    landed(desk, link, KEYS[0])
    consumer.finish(asked)
    assert sorted(link.released) == ["t:0", "t:2", "t:4"]
    assert len(link.dropped) == 3
    assert link.forgotten == ["t"]


def test_a_request_that_ends_before_it_was_looked_at_gives_everything_back(
    consumer: KVConsumerHalf, link: FakeLink
) -> None:
    consumer.finish(request("r", REMOTE))
    assert sorted(link.released) == ["t:0", "t:2", "t:4"]
    assert link.pulled == []


def test_two_requests_for_one_prompt_fetch_it_once(consumer: KVConsumerHalf, desk: Desk, link: FakeLink) -> None:
    other = RemoteKV("u", "epoch-kv", 1, len(PROMPT)).answer(42)
    first, second = request("r", REMOTE), request("s", other)
    consumer.matched(first, 0)
    consumer.matched(second, 0)
    assert len(link.pulled) == 3
    landed(desk, link, *KEYS)
    assert consumer.matched(first, 0) == consumer.matched(second, 0) == 18
    consumer.allocated(first, BLOCKS, 18)
    assert len(consumer.step_loads()) == 3
    assert link.dropped == []
    consumer.allocated(second, BLOCKS, 18)
    consumer.step_loads()
    assert {drop.loads for drop in link.dropped} == {2}


@pytest.mark.parametrize(
    "changes",
    [{"tokens": 0}, {"tokens": "all"}, {"rank": -1}, {"transfer": 7}, {"tokens": 1000}],
    ids=str,
)
def test_a_handle_that_makes_no_sense_is_computed_here(
    consumer: KVConsumerHalf, link: FakeLink, changes: dict[str, Any]
) -> None:
    asked = request("r", {"epd": REMOTE["epd"] | changes})
    assert consumer.matched(asked, 0) == 0
    assert link.pulled == []
    consumer.finish(asked)


def test_a_request_of_another_kind_is_none_of_ours(consumer: KVConsumerHalf, link: FakeLink) -> None:
    asked = request("r", {"do_remote_prefill": True})
    assert consumer.matched(asked, 0) == 0
    consumer.allocated(asked, BLOCKS, 0)
    consumer.finish(asked)
    assert link.released == link.pulled == []
