# SPDX-License-Identifier: Apache-2.0
"""The registry of instances, with a clock that is moved by hand."""

import contextlib
import dataclasses

import pytest

from tests.fakes.instance import FINGERPRINT
from vllm_epd.router.instances import InstanceRegistry
from vllm_epd.router.seats import Counted
from vllm_epd.types import InstanceInfo, RoleSet

A = InstanceInfo("a:1", "e1", "http://a:1", RoleSet.parse("prefill"), ("tiny",), FINGERPRINT)
B = dataclasses.replace(A, instance_id="b:1", url="http://b:1")


@pytest.fixture
def registry(clock):
    return InstanceRegistry(clock, ttl_s=6.0)


def test_instances_are_listed_in_order_of_registration(registry):
    registry.register(A)
    registry.register(B)
    registry.register(A)
    assert [each.info for each in registry.listed()] == [A, B]


def test_an_instance_lives_for_its_ttl_and_no_longer(registry, clock):
    registry.register(A)
    clock.now += 6.0
    assert len(registry.available()) == 1
    clock.now += 0.01
    assert registry.available() == ()
    assert not registry.heartbeat("a:1", "e1")


def test_a_heartbeat_prolongs_life(registry, clock):
    registry.register(A)
    for _ in range(3):
        clock.now += 5.0
        assert registry.heartbeat("a:1", "e1")
    (instance,) = registry.available()
    assert registry.age_s(instance) == 0
    assert instance.info == A


def test_a_heartbeat_brings_roles_and_models_up_to_date(registry):
    registry.register(A)
    registry.heartbeat("a:1", "e1", RoleSet.parse("decode"), ())
    (instance,) = registry.available()
    assert (str(instance.info.roles), instance.info.models) == ("decode", ())


def test_a_heartbeat_of_a_stranger_is_not_taken(registry):
    registry.register(A)
    assert not registry.heartbeat("a:1", "e0")
    assert not registry.heartbeat("b:1", "e1")


def test_a_new_epoch_is_another_instance(registry):
    registry.register(A)
    (old,) = registry.available()
    old.outstanding = 3
    registry.register(dataclasses.replace(A, epoch="e2"))
    (new,) = registry.available()
    assert (new is old, new.outstanding, old.outstanding) == (False, 0, 3)


def test_the_same_epoch_stays_the_same_instance(registry):
    registry.register(A)
    (old,) = registry.available()
    registry.register(dataclasses.replace(A, models=("other",)))
    (same,) = registry.available()
    assert same is old
    assert same.info.models == ("other",)


def test_only_the_present_epoch_can_leave(registry):
    registry.register(A)
    assert not registry.remove("a:1", "e0")
    assert registry.remove("a:1", "e1")
    assert not registry.remove("a:1", "e1")
    assert registry.listed() == ()


@pytest.mark.parametrize("back", ["heartbeat", "register", "restart"])
def test_a_suspended_instance_waits_for_a_sign_of_life(registry, clock, back):
    registry.register(A)
    registry.suspend(registry.available()[0])
    clock.now += 1.0
    assert registry.available() == ()
    assert len(registry.listed()) == 1
    if back == "heartbeat":
        registry.heartbeat("a:1", "e1")
    else:
        registry.register(A if back == "register" else dataclasses.replace(A, epoch="e2"))
    assert len(registry.available()) == 1


def test_what_follows_from_who_is_there_is_derived_once_until_that_changes(registry):
    registry.register(A)
    made = []

    def derive():
        made.append(registry.available())
        return len(made)

    assert [registry.derived("key", derive) for _ in range(3)] == [1, 1, 1]
    assert registry.derived("another key", derive) == 2
    registry.heartbeat("a:1", "e1", RoleSet.parse("decode"))
    assert registry.derived("key", derive) == 3
    assert [each.info.roles for each in made[-1]] == [RoleSet.parse("decode")]


def test_work_is_counted_to_its_end_even_if_it_fails(registry):
    registry.register(A)
    (instance,) = registry.available()
    counted = Counted()
    with contextlib.suppress(ValueError), counted:
        counted.work(instance, 2.0)
        counted.work(instance, 3.0)
        assert (instance.outstanding, instance.work) == (2, 5.0)
        raise ValueError
    assert (instance.outstanding, instance.work) == (0, 0.0)


def _comes_back(registry):
    registry.suspend(registry.listed()[0])
    registry.heartbeat("a:1", "e1")


CHANGES = {
    "another one comes": (lambda registry: registry.register(B), 1),
    "it restarts": (lambda registry: registry.register(dataclasses.replace(A, epoch="e2")), 1),
    "it leaves": (lambda registry: registry.remove("a:1", "e1"), 1),
    "it says something else": (lambda registry: registry.register(dataclasses.replace(A, agents=("tcp://a",))), 1),
    "it changes its role": (lambda registry: registry.heartbeat("a:1", "e1", RoleSet.parse("decode")), 1),
    "it is left alone and comes back": (_comes_back, 2),
    "it says the same": (lambda registry: registry.register(A), 0),
    "it lives": (lambda registry: registry.heartbeat("a:1", "e1"), 0),
    "a stranger leaves": (lambda registry: registry.remove("a:1", "e0"), 0),
    "nothing": (lambda registry: registry.sweep(), 0),
}


@pytest.mark.parametrize(("change", "times"), CHANGES.values(), ids=CHANGES.keys())
def test_each_change_is_counted_and_told(registry, change, times):
    registry.register(A)
    before, told = registry.revision, []
    registry.watch(lambda: told.append(registry.revision))
    change(registry)
    assert told == [before + each for each in range(1, times + 1)]
    assert registry.revision == before + times


def test_silence_is_noticed_when_it_is_looked_for(registry, clock):
    registry.register(A)
    registry.register(B)
    told = []
    registry.watch(lambda: told.append(True))
    clock.now += 6.01
    registry.sweep()
    assert told == [True]
