# SPDX-License-Identifier: Apache-2.0
"""The scheduler halves, with requests and a line to the agents that are made here."""

from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import pytest

from tests.unit.connectors.links import FakeLink
from vllm_epd.connectors.desk import Desk
from vllm_epd.connectors.ec_scheduler import ConsumerHalf, ProducerHalf, wants_description
from vllm_epd.connectors.landing import Drop
from vllm_epd.connectors.metadata import Load, Merge, Offer
from vllm_epd.transfer import wire
from vllm_epd.transfer.keys import part_key

ROW_BYTES = 8
LENGTH = 10


def handle(key: str, **changes: Any) -> dict[str, Any]:
    fields = {"version": wire.WIRE_VERSION, "key": key, "lease": f"lease-{key}", "epoch": "e", "rank": 0, "nbytes": 8}
    return {"handle": fields | changes}


def request(
    name: str, keys: str, params: Mapping[str, Any] | None = None, status: str = "FINISHED_LENGTH_CAPPED"
) -> SimpleNamespace:
    """One item of `LENGTH` tokens per letter of `keys`, one after the other."""
    features = [
        SimpleNamespace(
            identifier=key,
            mm_position=SimpleNamespace(offset=index * LENGTH, length=LENGTH, get_num_embeds=lambda: LENGTH - 1),
        )
        for index, key in enumerate(keys)
    ]
    given = {key: handle(key) for key in keys} if params is None else params
    return SimpleNamespace(
        request_id=name,
        mm_features=features,
        ec_transfer_params=given,
        status=SimpleNamespace(name=status),
        lora_request=None,
    )


@pytest.fixture
def consumer(desk: Desk) -> ConsumerHalf:
    return ConsumerHalf(desk, capacity_bytes=100, tower=False)


@pytest.fixture
def producer(desk: Desk) -> ProducerHalf:
    return ProducerHalf(desk, "epoch", 2, ROW_BYTES, reuse=True)


def finish(desk: Desk, half: ConsumerHalf | ProducerHalf, asked: SimpleNamespace) -> Any:
    """In the order in which the connector does it."""
    result = half.finish(asked)  # type: ignore[arg-type]
    desk.leave(asked.request_id)
    return result


def test_a_request_waits_until_all_it_needs_is_here(consumer: ConsumerHalf, desk: Desk, link: FakeLink) -> None:
    asked = request("r", "ab")
    assert not consumer.available(asked, 0)
    assert sorted(key for _, key in link.pulled) == ["a", "b"]
    number = {key: landing for landing, key in link.pulled}
    link.reports = [wire.Pulled(number["a"])]
    desk.collect()
    assert not consumer.available(asked, 0)
    assert link.released == ["lease-a"], "the producer may let go of what is here"
    link.reports = [wire.Pulled(number["b"])]
    desk.collect()
    assert consumer.available(asked, 0)
    assert len(link.pulled) == 2, "nothing is fetched twice"
    desk.book.load("a")
    assert desk.take_loads() == (Load("a", number["a"]),)
    finish(desk, consumer, asked)
    assert sorted(link.released) == ["lease-a", "lease-b"]
    assert set(link.dropped) == {Drop(number["a"], 1), Drop(number["b"], 0)}


def test_what_the_prefix_cache_covers_is_not_fetched_but_its_lease_is_given_back(
    consumer: ConsumerHalf, desk: Desk, link: FakeLink
) -> None:
    asked = request("r", "ab")
    assert not consumer.available(asked, LENGTH)
    assert [key for _, key in link.pulled] == ["b"]
    assert consumer.available(request("s", "a"), LENGTH)
    finish(desk, consumer, asked)
    assert sorted(link.released) == ["lease-a", "lease-b"]


def test_what_the_kv_cache_has_taken_in_is_let_go_and_fetched_again_after_a_preemption(
    consumer: ConsumerHalf, desk: Desk, link: FakeLink
) -> None:
    asked = request("r", "a")
    consumer.available(asked, 0)
    link.reports = [wire.Pulled(0)]
    desk.collect()
    assert consumer.available(asked, 0)
    assert consumer.available(asked, LENGTH)
    assert link.dropped == [Drop(0, 0)]
    assert not consumer.available(asked, 0)
    assert link.pulled == [(0, "a"), (1, "a")]


def test_leases_of_a_request_that_was_never_considered_are_given_back(consumer: ConsumerHalf, link: FakeLink) -> None:
    consumer.finish(request("r", "a"))
    assert link.released == ["lease-a"]


def test_one_failed_embedding_fails_one_request(consumer: ConsumerHalf, desk: Desk, link: FakeLink) -> None:
    bad, good = request("bad", "a"), request("good", "b")
    consumer.available(bad, 0)
    consumer.available(good, 0)
    link.reports = [wire.PullFailed(0, "gone"), wire.Pulled(1)]
    desk.collect()
    assert not consumer.available(bad, 0)
    assert consumer.available(good, 0)
    assert desk.has_given_up("bad")
    assert desk.take_unavailable() == {"bad"}
    assert desk.take_unavailable() == set()


@pytest.mark.parametrize(
    "params",
    [
        {},
        {"a": {"handle": {"key": "a"}}},
        {"a": "nonsense"},
        {"a": handle("b")["handle"]},
        {"a": handle("a", version=1)},
        {"a": handle("a", rank=-1)},
        {"a": handle("a", nbytes=0)},
        {"a": handle("a", peer="tcp://10.0.0.1:1")},
        {"a": handle("a", nbytes=101)},
    ],
)
def test_without_a_usable_handle_and_without_an_encoder_the_request_fails(
    consumer: ConsumerHalf, desk: Desk, link: FakeLink, params: dict[str, Any]
) -> None:
    asked = request("r", "a", params)
    assert not consumer.available(asked, 0)
    assert desk.take_unavailable() == {"r"}
    assert link.pulled == []
    finish(desk, consumer, asked)


def test_an_instance_with_an_encoder_encodes_what_has_no_handle(desk: Desk) -> None:
    consumer = ConsumerHalf(desk, 100, tower=True)
    assert consumer.available(request("r", "a", {}), 0)
    assert not desk.book.is_ready("a")


def test_a_request_that_is_past_its_items_needs_no_handles(consumer: ConsumerHalf) -> None:
    assert consumer.available(request("decode", "a", {}), LENGTH)


def test_drops_come_after_the_last_user(consumer: ConsumerHalf, desk: Desk, link: FakeLink) -> None:
    first, second = request("first", "a"), request("second", "a")
    consumer.available(first, 0)
    consumer.available(second, 0)
    link.reports = [wire.Pulled(0)]
    desk.collect()
    consumer.available(first, 0)
    finish(desk, consumer, first)
    assert link.dropped == []
    finish(desk, consumer, second)
    assert link.dropped == [Drop(0, 0)]


def in_parts(key: str, count: int, **changes: Any) -> dict[str, Any]:
    """The handles of an item that was encoded in parts."""
    return {"parts": [handle(part_key(key, index, count), **changes)["handle"] for index in range(count)]}


def test_an_item_in_parts_is_here_once_all_its_parts_are(consumer: ConsumerHalf, desk: Desk, link: FakeLink) -> None:
    asked = request("r", "a", {"a": in_parts("a", 3)})
    assert not consumer.available(asked, 0)
    assert link.pulled == [(0, "a:0/3"), (1, "a:1/3"), (2, "a:2/3")]
    for landing in (2, 0):
        link.reports = [wire.Pulled(landing)]
        desk.collect()
        assert not consumer.available(asked, 0)
        assert not desk.book.is_ready("a")
    assert sorted(link.released) == ["lease-a:0/3", "lease-a:2/3"]
    link.reports = [wire.Pulled(1)]
    desk.collect()
    assert consumer.available(asked, 0)
    assert desk.book.is_ready("a")
    desk.book.load("a")
    assert desk.take_merges() == (Merge("a", (Load("a:0/3", 0), Load("a:1/3", 1), Load("a:2/3", 2))),)
    assert desk.take_loads() == ()
    finish(desk, consumer, asked)
    assert len(link.released) == 3
    assert set(link.dropped) == {Drop(0, 1), Drop(1, 1), Drop(2, 1)}
    assert not desk.book.is_ready("a")


def test_one_lost_part_fails_the_request_and_gives_back_the_others(
    consumer: ConsumerHalf, desk: Desk, link: FakeLink
) -> None:
    asked = request("r", "a", {"a": in_parts("a", 2)})
    consumer.available(asked, 0)
    link.reports = [wire.Pulled(0), wire.PullFailed(1, "gone")]
    desk.collect()
    assert not consumer.available(asked, 0)
    assert desk.take_unavailable() == {"r"}
    finish(desk, consumer, asked)
    assert sorted(link.released) == ["lease-a:0/2", "lease-a:1/2"]
    assert link.dropped == [Drop(0, 0)]


def test_each_request_waits_for_the_item_as_it_was_given_it(consumer: ConsumerHalf, desk: Desk, link: FakeLink) -> None:
    split, whole, finer = (
        request("s", "a", {"a": in_parts("a", 2)}),
        request("w", "a"),
        request("f", "a", {"a": in_parts("a", 3)}),
    )
    for each in (split, whole, finer):
        consumer.available(each, 0)
    assert [key for _, key in link.pulled] == ["a:0/2", "a:1/2", "a", "a:0/3", "a:1/3", "a:2/3"]
    link.reports = [wire.Pulled(0), wire.Pulled(1)]
    desk.collect()
    assert consumer.available(split, 0)
    assert not consumer.available(whole, 0)
    assert not consumer.available(finer, 0)
    finish(desk, consumer, split)
    assert not desk.book.is_ready("a"), "what the others wait for is not here"
    link.reports = [wire.Pulled(2)]
    desk.collect()
    assert consumer.available(whole, 0)
    desk.book.load("a")
    assert desk.take_loads() == (Load("a", 2),)


def test_parts_that_two_requests_need_are_fetched_once_and_dropped_after_both(
    consumer: ConsumerHalf, desk: Desk, link: FakeLink
) -> None:
    one, two = (request(name, "a", {"a": in_parts("a", 2)}) for name in "ot")
    consumer.available(one, 0)
    consumer.available(two, 0)
    assert len(link.pulled) == 2
    link.reports = [wire.Pulled(0), wire.Pulled(1)]
    desk.collect()
    assert consumer.available(two, 0)
    finish(desk, consumer, one)
    assert (link.dropped, desk.book.is_ready("a")) == ([], True)
    assert consumer.available(two, LENGTH), "the KV cache covers it by now"
    assert set(link.dropped) == {Drop(0, 0), Drop(1, 0)}


@pytest.mark.parametrize(
    "entry",
    [
        {"parts": []},
        {"parts": "many"},
        {"parts": [handle("a")["handle"]]},
        {"parts": in_parts("a", 2)["parts"][::-1]},
        {"parts": in_parts("a", 3)["parts"][:2]},
        {"parts": [in_parts("a", 2)["parts"][0], in_parts("b", 2)["parts"][1]]},
        in_parts("a", 2, nbytes=51),
    ],
    ids=["none", "no list", "the whole", "out of order", "one missing", "of another item", "too large together"],
)
def test_parts_that_do_not_make_up_the_item_fail_the_request(
    consumer: ConsumerHalf, desk: Desk, link: FakeLink, entry: dict[str, Any]
) -> None:
    assert not consumer.available(request("r", "a", {"a": entry}), 0)
    assert desk.take_unavailable() == {"r"}
    assert link.pulled == []


OFFER = {"epd": {"offer": "e0"}}


def test_a_part_that_an_item_does_not_have_is_not_offered(producer: ProducerHalf, desk: Desk, link: FakeLink) -> None:
    asked = request("r", "a", OFFER)
    asked.mm_features[0].mm_position.get_num_embeds = lambda: 0
    assert producer.available(asked)
    assert link.reserved == []
    assert finish(desk, producer, asked) == {}


def test_a_request_waits_for_room_for_all_its_distinct_items(
    producer: ProducerHalf, desk: Desk, link: FakeLink
) -> None:
    asked = request("r", "aba", OFFER)
    assert not producer.available(asked)
    assert not producer.available(asked)
    (items,) = link.reserved
    assert link.transfers == ["e0"]
    assert [(item.key, item.lease, item.nbytes) for item in items] == [("a", "r:0", 72), ("b", "r:1", 72)]
    link.reports = [wire.Reserved(items[0].landing, [], [72, 72])]
    desk.collect()
    assert producer.available(asked)
    assert not desk.book.is_ready("a"), "it is to be encoded"


def test_what_the_pool_holds_is_loaded_instead_of_encoded(producer: ProducerHalf, desk: Desk, link: FakeLink) -> None:
    asked = request("r", "ab", OFFER)
    producer.available(asked)
    first, second = link.reserved[0]
    link.reports = [wire.Reserved(first.landing, [second.landing], [72, 72])]
    desk.collect()
    assert producer.available(asked)
    assert not desk.book.is_ready("a")
    assert desk.book.is_ready("b")
    desk.book.load("b")
    finish(desk, producer, asked)
    assert link.dropped == [Drop(second.landing, 1)]


def test_where_not_every_worker_can_load_it_is_encoded_again(desk: Desk, link: FakeLink) -> None:
    producer = ProducerHalf(desk, "epoch", 0, ROW_BYTES, reuse=False)
    producer.available(request("r", "a", OFFER))
    (item,) = link.reserved[0]
    link.reports = [wire.Reserved(item.landing, [item.landing], [72])]
    desk.collect()
    assert not desk.book.is_ready("a")
    assert link.dropped == [Drop(item.landing, 0)]


def test_without_room_one_request_fails(producer: ProducerHalf, desk: Desk, link: FakeLink) -> None:
    asked = request("r", "a", OFFER)
    producer.available(asked)
    link.reports = [wire.ReserveFailed(link.reserved[0][0].landing, "no room")]
    desk.collect()
    assert not producer.available(asked)
    assert desk.take_unavailable() == {"r"}


def test_offers_go_with_the_step_and_handles_to_whoever_asked(
    producer: ProducerHalf, desk: Desk, link: FakeLink
) -> None:
    offered, plain = request("o", "aba", OFFER), request("p", "c", {})
    producer.available(offered)
    assert producer.available(plain)
    assert producer.step_offers({"o": 1}) == (), "there is no room yet"
    link.reports = [wire.Reserved(link.reserved[0][0].landing, [], [72, 19])]
    desk.collect()
    assert producer.step_offers({"p": 1}) == ()
    assert producer.step_offers({"o": 1, "p": 1}) == (Offer("a", "o:0", 72), Offer("b", "o:1", 19))
    given = finish(desk, producer, offered)
    assert set(given) == {"a", "b"}
    assert wire.handle_from_json(given["a"]["handle"]) == wire.EmbeddingHandle(
        wire.WIRE_VERSION, "a", "o:0", "epoch", 2, 72
    )
    assert given["b"]["handle"]["nbytes"] == 19, "what is offered may be smaller than what was wanted"
    assert "lora" not in given["a"]
    assert finish(desk, producer, plain) == {}
    assert producer.step_offers({"o": 1}) == ()
    assert link.withdrawn == []


def test_handles_say_which_adapter_they_were_made_for(producer: ProducerHalf, desk: Desk, link: FakeLink) -> None:
    asked = request("o", "a", OFFER)
    asked.lora_request = SimpleNamespace(lora_path="/adapters/one")
    producer.available(asked)
    link.reports = [wire.Reserved(link.reserved[0][0].landing, [], [72])]
    desk.collect()
    assert finish(desk, producer, asked)["a"]["lora"] == "/adapters/one"


@pytest.mark.parametrize("status", ["FINISHED_ABORTED", "FINISHED_ERROR"])
def test_nobody_comes_for_what_an_aborted_request_was_to_offer(
    producer: ProducerHalf, desk: Desk, link: FakeLink, status: str
) -> None:
    asked = request("o", "ab", OFFER, status)
    producer.available(asked)
    assert finish(desk, producer, asked) == {}
    assert link.withdrawn == ["o:0", "o:1"]
    desk.collect()


@pytest.mark.parametrize(
    ("params", "expected"),
    [
        ({"epd": {"describe": True}}, True),
        ({"epd": {"offer": True, "shard": [0, 2]}}, True),
        ({"epd": 1}, False),
        (None, False),
    ],
)
def test_wants_description(params: dict[str, Any] | None, expected: bool) -> None:
    asked = request("r", "a")
    asked.ec_transfer_params = params
    assert wants_description(asked) is expected  # type: ignore[arg-type]
