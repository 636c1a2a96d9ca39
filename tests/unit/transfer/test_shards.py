# SPDX-License-Identifier: Apache-2.0
"""Real agents that have a part of every item each: a consumer gets the part that is its own."""

import pytest

torch = pytest.importorskip("torch")

from tests.unit.transfer.parties import FINGERPRINT, Party, pattern, wait_until  # noqa: E402
from vllm_epd.connectors.landing import Drop  # noqa: E402
from vllm_epd.connectors.link import AgentLink  # noqa: E402
from vllm_epd.transfer import wire  # noqa: E402
from vllm_epd.transfer.handshake import Identity  # noqa: E402
from vllm_epd.transfer.shard import Shard  # noqa: E402

SIZE = 8192
COUNT = 2


@pytest.fixture
def make_instance(make_party):
    """Agents of one instance, one for each part."""

    def make(epoch: str, count: int = COUNT) -> list[Party]:
        shards = [Shard(index, count) for index in range(count)]
        return [make_party(identity=Identity(epoch, FINGERPRINT, b"s", shard=shard)) for shard in shards]

    return make


def introduce(consumers: list[Party], producers: list[Party]):
    addresses = [each.config.listen for each in producers]
    for consumer in consumers:
        consumer.tell(wire.SetPeers({producers[0].epoch: addresses}))


def part(index: int):
    return pattern(f"part {index}", SIZE)


def offer(producers: list[Party], key="k"):
    for index, producer in enumerate(producers):
        producer.offer(key, part(index))
    return producers[0].handle(key, SIZE)


def test_the_agents_of_an_instance_are_numbered_rank_by_rank():
    numbers = [Shard(index, COUNT).agent(rank) for rank in range(3) for index in range(COUNT)]
    assert numbers == list(range(3 * COUNT))
    assert [Shard().agent(rank) for rank in range(3)] == [0, 1, 2]


def test_each_consumer_gets_its_own_part_under_one_handle(make_instance):
    producers, consumers = make_instance("p"), make_instance("d")
    introduce(consumers, producers)
    handle = offer(producers)
    for index, consumer in enumerate(consumers):
        assert consumer.pull(handle, 3) == wire.Pulled(3)
        assert torch.equal(consumer.load(3, "k"), part(index))
        consumer.tell(wire.Release(handle))
        wait_until(lambda index=index: producers[index].state().pinned == 0)
    assert [each.state().fetched for each in consumers] == [1, 1]


def test_each_consumer_follows_the_transfer_of_its_own_part(make_instance):
    producers, consumers = make_instance("p"), make_instance("d")
    introduce(consumers, producers)
    for consumer in consumers:
        consumer.tell(wire.Expect("t", "p", 0))
    for producer in producers:
        assert producer.ask(wire.Reserve([wire.Wanted(0, "k", "l", SIZE)], "t")) == wire.Reserved(0, [], [SIZE])
    for index, producer in enumerate(producers):
        producer.store.put("k", part(index))
    for index, consumer in enumerate(consumers):
        wait_until(lambda consumer=consumer: consumer.state().fetched == 1)
        assert consumer.pull(producers[0].handle("k", SIZE), 3) == wire.Pulled(3)
        assert torch.equal(consumer.load(3, "k"), part(index))


@pytest.fixture
def open_link():
    links = []

    def make(agents: list[Party]) -> AgentLink:
        links.append(AgentLink([each.config.command for each in agents], sharded=True))
        return links[-1]

    yield make
    for link in links:
        link.close()


def news(link: AgentLink):
    return wait_until(lambda: link.poll(100))


def test_a_scheduler_makes_room_has_parts_fetched_and_gives_them_back_on_all_ranks(make_instance, open_link):
    producers, consumers = make_instance("p"), make_instance("d")
    introduce(consumers, producers)
    here, there = open_link(consumers), open_link(producers)
    there.reserve([wire.Wanted(0, "k", "k", SIZE)], "t")
    assert news(there) == [wire.Reserved(0, [], [SIZE])]
    for index, producer in enumerate(producers):
        producer.store.put("k", part(index))
    here.pull(3, producers[0].handle("k", SIZE))
    assert news(here) == [wire.Pulled(3)]
    here.release(producers[0].handle("k", SIZE))
    for index, consumer in enumerate(consumers):
        assert torch.equal(consumer.load(3, "k"), part(index))
    here.drop(Drop(3, 1))
    wait_until(lambda: not any(each.state().pinned for each in (*producers, *consumers)))


def test_where_one_rank_has_no_room_the_others_keep_none(make_party, open_link):
    roomy, small = make_party(), make_party(pool_bytes=SIZE)
    link = open_link([roomy, small])
    link.reserve([wire.Wanted(0, "k", "lease", 2 * SIZE)], "t")
    (failed,) = news(link)
    assert isinstance(failed, wire.ReserveFailed)
    wait_until(lambda: roomy.state().pinned == 0)
    assert roomy.state().items == 0


def test_what_one_rank_cannot_fetch_is_kept_by_none(make_instance, open_link):
    producers, consumers = make_instance("p"), make_instance("d")
    introduce(consumers, producers)
    handle = producers[0].offer("k", part(0))
    link = open_link(consumers)
    link.pull(3, handle)
    (failed,) = news(link)
    assert isinstance(failed, wire.PullFailed)
    wait_until(lambda: not any(each.state().pinned for each in consumers))


@pytest.mark.parametrize(("there", "here"), [(2, 1), (2, 4), (1, 2)])
def test_another_number_of_parts_is_refused_by_name_of_both(make_instance, there, here):
    producers, consumers = make_instance("p", there), make_instance("d", here)
    introduce(consumers, producers)
    failed = consumers[0].pull(offer(producers))
    assert isinstance(failed, wire.PullFailed)
    assert f"the consumer has tensor-parallel size {here}, the producer {there};" in failed.reason
    assert "use --epd-kv-connector nixl on prefill and decode" in failed.reason
    assert producers[0].state().refused == 1


def test_a_part_that_lies_at_another_data_parallel_rank_of_fewer_parts_is_refused(make_party, make_instance):
    """The second agent of the producer is its second engine, not the second part of the first one."""
    producers = [make_party(identity=Identity("p", FINGERPRINT, b"s")) for _ in range(COUNT)]
    consumers = make_instance("d")
    introduce(consumers, producers)
    failed = consumers[1].pull(offer(producers))
    assert "the consumer has tensor-parallel size 2, the producer 1;" in failed.reason
