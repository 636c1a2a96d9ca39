# SPDX-License-Identifier: Apache-2.0
"""The scheduler halves, with requests and a line to the agents that are made here."""

from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import pytest

from vllm_epd.connectors.ec_scheduler import ConsumerHalf, ProducerHalf, describe
from vllm_epd.connectors.metadata import Load, Offer
from vllm_epd.transfer import wire


class FakeLink:
    """Records commands; the test says what lands."""

    def __init__(self) -> None:
        self.pulled: list[tuple[int, str]] = []
        self.released: list[str] = []
        self.reports: list[wire.Pulled | wire.PullFailed] = []

    def pull(self, landing: int, handle: wire.EmbeddingHandle) -> None:
        self.pulled.append((landing, handle.key))

    def release(self, handle: wire.EmbeddingHandle) -> None:
        self.released.append(handle.lease)

    def poll(self) -> list[wire.Pulled | wire.PullFailed]:
        reports, self.reports = self.reports, []
        return reports

    def close(self) -> None:
        pass


def handle(key: str, **changes: Any) -> dict[str, Any]:
    fields = {"version": wire.WIRE_VERSION, "key": key, "lease": f"lease-{key}", "peer": "tcp://h:1", "epoch": "e"}
    return {"handle": fields | changes}


def request(name: str, keys: str, params: Mapping[str, Any] | None = None, length: int = 10) -> SimpleNamespace:
    """One item of `length` tokens per letter of `keys`, one after the other."""
    features = [
        SimpleNamespace(identifier=key, mm_position=SimpleNamespace(offset=index * length, length=length))
        for index, key in enumerate(keys)
    ]
    given = {key: handle(key) for key in keys} if params is None else params
    return SimpleNamespace(request_id=name, mm_features=features, ec_transfer_params=given)


@pytest.fixture
def link() -> FakeLink:
    return FakeLink()


@pytest.fixture
def consumer(link: FakeLink) -> ConsumerHalf:
    return ConsumerHalf(link, idle_bytes=0, tower=False)  # type: ignore[arg-type]


def test_a_request_waits_until_all_it_needs_is_here(consumer: ConsumerHalf, link: FakeLink) -> None:
    asked = request("r", "ab")
    assert not consumer.available(asked, 0)
    assert link.pulled == [(0, "a"), (1, "b")]
    link.reports = [wire.Pulled(0, 8)]
    assert not consumer.available(asked, 0)
    link.reports = [wire.Pulled(1, 8)]
    assert consumer.available(asked, 0)
    assert link.pulled == [(0, "a"), (1, "b")], "nothing is fetched twice"
    consumer.load("a")
    consumer.load("b")
    assert consumer.step_loads() == (Load("a", 0), Load("b", 1))
    assert consumer.step_loads() == ()


def test_what_the_prefix_cache_covers_is_not_fetched_but_its_lease_is_given_back(
    consumer: ConsumerHalf, link: FakeLink
) -> None:
    asked = request("r", "ab")
    assert not consumer.available(asked, 10)
    assert link.pulled == [(0, "b")]
    assert consumer.available(request("s", "a"), 10)
    consumer.finish(asked)
    assert sorted(link.released) == ["lease-a", "lease-b"]


def test_leases_of_a_request_that_was_never_considered_are_given_back(consumer: ConsumerHalf, link: FakeLink) -> None:
    consumer.finish(request("r", "a"))
    assert link.released == ["lease-a"]


def test_one_failed_embedding_fails_one_request(consumer: ConsumerHalf, link: FakeLink) -> None:
    bad, good = request("bad", "a"), request("good", "b")
    consumer.available(bad, 0)
    consumer.available(good, 0)
    link.reports = [wire.PullFailed(0, "gone"), wire.Pulled(1, 8)]
    assert not consumer.available(bad, 0)
    assert consumer.available(good, 0)
    assert consumer.take_unavailable() == {"bad"}
    assert consumer.take_unavailable() == set()


@pytest.mark.parametrize(
    "params",
    [
        {},
        {"a": {"handle": {"key": "a"}}},
        {"a": "nonsense"},
        {"a": handle("b")["handle"]},
        {"a": handle("a", version=99)},
    ],
)
def test_without_a_usable_handle_and_without_an_encoder_the_request_fails(
    consumer: ConsumerHalf, params: dict[str, Any]
) -> None:
    asked = request("r", "a", params)
    assert not consumer.available(asked, 0)
    assert consumer.take_unavailable() == {"r"}
    consumer.finish(asked)


def test_an_instance_with_an_encoder_encodes_what_has_no_handle(link: FakeLink) -> None:
    consumer = ConsumerHalf(link, idle_bytes=0, tower=True)  # type: ignore[arg-type]
    assert consumer.available(request("r", "a", {}), 0)
    assert not consumer.has("a")


def test_a_request_that_is_past_its_items_needs_no_handles(consumer: ConsumerHalf) -> None:
    assert consumer.available(request("decode", "a", {}), 10)


def test_drops_come_after_the_last_user(consumer: ConsumerHalf, link: FakeLink) -> None:
    first, second = request("first", "a"), request("second", "a")
    consumer.available(first, 0)
    consumer.available(second, 0)
    link.reports = [wire.Pulled(0, 8)]
    consumer.available(first, 0)
    consumer.finish(first)
    assert consumer.step_drops() == ()
    consumer.finish(second)
    assert consumer.step_drops() == (0,)


def test_a_producer_offers_only_what_the_router_asks_for_and_only_when_scheduled() -> None:
    producer = ProducerHalf("epoch", "tcp://h:1")
    offered, plain = request("o", "aba", {"epd": {"offer": True}}), request("p", "c", {})
    producer.note(offered)
    producer.note(plain)
    assert producer.step_offers({"p": 1}) == ()
    assert producer.step_offers({"o": 1, "p": 1}) == (Offer("a", "o:0"), Offer("b", "o:1"))
    given = producer.finish(offered)
    assert set(given) == {"a", "b"}
    assert wire.handle_from_json(given["a"]["handle"]) == wire.EmbeddingHandle(
        wire.WIRE_VERSION, "a", "o:0", "tcp://h:1", "epoch"
    )
    assert producer.finish(plain) == {}
    assert producer.step_offers({"o": 1}) == ()


@pytest.mark.parametrize(
    ("params", "expected"), [({"epd": {"describe": True}}, True), ({"epd": 1}, False), (None, False)]
)
def test_describe(params: dict[str, Any] | None, expected: bool) -> None:
    asked = request("r", "a")
    asked.ec_transfer_params = params
    assert describe(asked) is expected  # type: ignore[arg-type]
