# SPDX-License-Identifier: Apache-2.0
"""Whether there is room for all parts of a request, and where."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.router.test_pools import encoder
from vllm_epd.router.instances import Instance
from vllm_epd.router.placement import Need, Place, has_room, place
from vllm_epd.router.pools import kept

ITEM = 10


def pool_of(items, used=0):
    """An encoder with room for some items, of which one holds `used`."""
    limits = {} if items is None else {"pool_bytes": items * ITEM}
    instance = Instance(encoder(**limits), seen=0.0)
    if used:
        instance.pool.take("before", used * ITEM)
    return instance


def first(candidates, names=()):
    return candidates[0]


def least_busy(candidates, names=()):
    return min(candidates, key=lambda each: each.outstanding)


def placed(needs, encoders, choose=least_busy):
    found = place(needs, encoders, choose, lambda instance: ITEM)
    return None if found is None else [each.instance for each in found]


def new(count):
    return [Need(object()) for _ in range(count)]


def there(instance, key="cat"):
    return Need(object(), Place(instance, kept(key), ITEM))


@given(
    st.lists(st.tuples(st.integers(1, 4), st.integers(0, 4)), min_size=1, max_size=3),
    st.integers(1, 8),
)
def test_all_parts_find_room_or_none_does_and_nothing_is_changed(pools, count):
    encoders = [pool_of(items, min(used, items)) for items, used in pools]
    before = [each.pool.used for each in encoders]
    found = placed(new(count), encoders)
    assert [each.pool.used for each in encoders] == before
    assert [each.outstanding for each in encoders] == [0] * len(encoders)
    room = sum(max(0, items - used) for items, used in pools)
    assert (found is not None) == (count <= room or not any(before))
    if found is not None and any(before):
        for each, used in zip(encoders, before, strict=True):
            assert used + found.count(each) * ITEM <= each.info.limits["pool_bytes"]


def test_a_policy_that_fails_leaves_nothing_taken():
    encoders = [pool_of(4), pool_of(4)]
    left = iter(encoders)

    def one_after_the_other(candidates, names=()):
        return next(left)

    with pytest.raises(StopIteration):
        placed([there(encoders[1]), *new(3)], encoders, one_after_the_other)
    assert [(each.pool.used, each.outstanding) for each in encoders] == [(0, 0), (0, 0)]


def test_parts_are_spread_by_the_policy_over_those_with_room():
    full, one, other = pool_of(2, used=2), pool_of(2), pool_of(2)
    assert placed(new(2), [full, one, other]) == [one, other]
    assert placed(new(2), [full, one, other], first) == [one, one]
    assert placed(new(3), [full, one, other], first) == [one, one, other]


def test_an_instance_that_tells_no_size_has_room_for_everything():
    unlimited = pool_of(None, used=100)
    assert placed(new(50), [unlimited]) == [unlimited] * 50


def test_what_is_larger_than_all_pools_goes_where_nothing_is_in_use():
    one, other = pool_of(2), pool_of(2)
    found = placed(new(9), [one, other])
    assert sorted([found.count(one), found.count(other)]) == [4, 5]
    one.pool.take("x", 1)
    assert placed(new(9), [one, other]) is None


def test_an_embedding_that_is_held_already_takes_no_room():
    full = pool_of(2, used=3)
    full.pool.take(kept("cat"), ITEM)
    need = there(full)
    assert place([need], [full], first, lambda instance: ITEM) == [need.there]
    assert placed([there(full, "dog")], [full]) is None


def test_what_has_its_place_is_counted_before_what_has_none():
    one, other = pool_of(2, used=1), pool_of(2)
    assert placed([*new(2), there(one)], [one, other], first) == [other, other, one]
    assert placed([*new(3), there(one)], [one, other], first) is None


def test_what_has_no_room_where_it_is_is_made_elsewhere():
    full, other = pool_of(2, used=2), pool_of(2)
    need = there(full)
    (found,) = place([need], [full, other], first, lambda instance: ITEM)
    assert (found.instance, found.slot, found.nbytes) == (other, need.slot, ITEM)


def test_more_than_a_pool_can_have_kept_is_made_elsewhere_though_nothing_is_in_use():
    small, large = pool_of(1), pool_of(3)
    assert placed([there(small, "cat"), there(small, "dog")], [small, large]) == [small, large]


def test_a_part_twice_in_a_request_takes_room_once():
    one = pool_of(2, used=1)
    assert placed([there(one), there(one)], [one]) == [one, one]


@pytest.mark.parametrize(("used", "fits"), [(0, True), (1, True), (2, False)])
def test_room(used, fits):
    assert has_room(pool_of(2, used), "x", ITEM) is fits
