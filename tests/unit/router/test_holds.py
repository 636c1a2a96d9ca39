# SPDX-License-Identifier: Apache-2.0
"""What a request holds, and how it ends."""

import pytest

from tests.fakes.instance import FINGERPRINT
from tests.unit.router.test_pools import ENCODER
from vllm_epd.router.embeddings import Lease, read_lease
from vllm_epd.router.holds import Hold, Leased, Leases
from vllm_epd.router.instances import Instance
from vllm_epd.router.media import EncodedItem


@pytest.fixture
def one():
    return Instance(ENCODER, 0.0)


@pytest.fixture
def other():
    return Instance(ENCODER, 0.0)


@pytest.fixture
def freed():
    return []


@pytest.fixture
def released():
    return []


@pytest.fixture
def release(released):
    def tell(instance, leases, ended):
        released.append((instance, [each.id for each in leases]))
        ended()

    return tell


def leased(instance, name, freed, rank=0, lease=True):
    hold = Hold(instance, name, 10, freed.append)
    return Leased(EncodedItem(name, "image", {}), hold, Lease(name, name, rank) if lease else None)


def test_a_hold_ends_once(one, freed):
    first, second = Hold(one, "x", 10, freed.append), Hold(one, "x", 10, freed.append)
    first.end()
    first.end()
    assert one.pool.used == 10
    second.end()
    assert (one.pool.used, freed) == (0, [FINGERPRINT] * 2)


def test_a_hold_moves_to_another_instance(one, other, freed):
    hold = Hold(one, "x", 10, freed.append)
    hold.move(other, "y", 4)
    assert (one.pool.used, other.pool.used, freed) == (0, 4, [FINGERPRINT])
    hold.end()
    assert other.pool.used == 0


def test_a_hold_whose_size_becomes_known_stays_where_it_is(one, freed):
    hold = Hold(one, "x", 10, freed.append)
    hold.move(one, "y", 4)
    assert one.pool.used == 4


def test_after_the_last_prefill_nothing_is_held_and_nobody_told(one, freed, release, released):
    leases = Leases()
    leases.prefills = 2
    leases.add(leased(one, "a", freed))
    leases.prefilled()
    assert one.pool.used == 10
    leases.prefilled()
    assert one.pool.used == 0
    leases.abandon(release)
    assert released == []


def test_what_nobody_will_read_is_given_back_by_instance_and_rank(one, other, freed, release, released):
    leases = Leases()
    for each in (
        leased(one, "a", freed),
        leased(one, "b", freed, rank=1),
        leased(one, "c", freed),
        leased(other, "d", freed),
        leased(other, "e", freed, lease=False),
    ):
        leases.add(each)
    leases.abandon(release)
    assert released == [(one, ["a", "c"]), (one, ["b"]), (other, ["d"])]
    assert (one.pool.used, other.pool.used) == (0, 0)
    leases.abandon(release)
    assert len(released) == 3


def test_room_is_free_once_the_instance_knows(one, freed):
    leases, told = Leases(), []
    leases.add(leased(one, "a", freed))
    leases.abandon(lambda instance, leases, ended: told.append(ended))
    assert one.pool.used == 10
    told[0]()
    assert one.pool.used == 0


def test_what_prefill_is_not_told_of_is_given_back(one, freed, release, released):
    leases, read, unread = Leases(), leased(one, "a", freed), leased(one, "b", freed)
    leases.add(read)
    leases.add(unread)
    leases.drop_unread([read.item, EncodedItem("b", "image", {})], release)
    assert (released, one.pool.used) == ([(one, ["b"])], 10)


@pytest.mark.parametrize(
    ("handle", "lease"),
    [
        ({"lease": "l", "key": "k", "rank": 2, "nbytes": 7, "x": 1}, Lease("l", "k", 2, 7)),
        ({"lease": "l", "key": "k"}, Lease("l", "k", 0, 0)),
        ({"lease": "l", "key": "k", "rank": "2", "nbytes": -7}, Lease("l", "k", 0, 0)),
        ({"lease": "l", "key": "k", "rank": True, "nbytes": 1.5}, Lease("l", "k", 0, 0)),
        ({"lease": "l"}, None),
        ({"lease": 3, "key": "k"}, None),
        ("handle", None),
        (None, None),
    ],
)
def test_the_lease_that_a_handle_tells_of(handle, lease):
    assert read_lease(handle) == lease
