# SPDX-License-Identifier: Apache-2.0
"""The way of a request as a function of who is there."""

import dataclasses

import pytest

from tests.fakes.instance import FINGERPRINT
from vllm_epd.errors import NoInstanceError
from vllm_epd.router.failures import UnknownModelError
from vllm_epd.router.instances import Instance
from vllm_epd.router.plan import Route, missing, peers, serving, who_may_prefill
from vllm_epd.types import InstanceInfo, Role, RoleSet

OTHER = dataclasses.replace(FINGERPRINT, processor="p9")


def instance(name, letters, fingerprint=FINGERPRINT, models=("tiny",), **fields):
    info = InstanceInfo(name, "1", f"http://{name}", RoleSet.from_letters(letters), models, fingerprint, **fields)
    return Instance(info, seen=0.0)


def named(*letters, fingerprint=FINGERPRINT):
    return [instance(f"{each}{number}", each, fingerprint) for number, each in enumerate(letters)]


def first(stage, candidates):
    return candidates[0]


def plan_route(instances, *, has_media, pick, **bound):
    candidates = who_may_prefill(instances, has_media=has_media, **bound)
    return Route.through(pick(Role.PREFILL, candidates), has_media=has_media)


# chosen prefill instance -> (splits, encodes apart, raw media) with media, the same without
WAYS = {
    "P": ((True, True, False), (True, False, False)),
    "EP": ((True, False, True), (True, False, False)),
    "PD": ((False, True, False), (False, False, False)),
    "EPD": ((False, False, True), (False, False, False)),
}


@pytest.mark.parametrize("letters", WAYS)
@pytest.mark.parametrize("has_media", [True, False])
def test_the_way_follows_from_the_roles_of_the_prefill_instance(letters, has_media):
    instances = named(letters, "E", "D")
    route = plan_route(instances, has_media=has_media, pick=first)
    assert route.prefill is instances[0]
    assert (route.splits, route.encodes_apart, route.raw_media) == WAYS[letters][0 if has_media else 1]
    assert route.alone == (letters == "EPD" or (letters == "PD" and not has_media))


def test_only_prefill_instances_of_whole_groups_are_candidates():
    seen = []

    def pick(stage, candidates):
        seen.append((stage, [each.name for each in candidates]))
        return candidates[-1]

    instances = [
        *named("E", "P", "PD"),
        *[instance("lone", "P", OTHER), instance("deaf", "D", OTHER)],
    ]
    plan_route(instances, has_media=True, pick=pick)
    assert seen == [(Role.PREFILL, ["P1", "PD2"])]
    plan_route(instances, has_media=False, pick=pick)
    assert seen[1] == (Role.PREFILL, ["P1", "PD2", "lone"])


def test_a_new_way_keeps_to_what_is_encoded():
    old = named("P", "PD", "EP", "EPD", "E")
    new = [instance("p9", "P", OTHER), instance("d9", "D", OTHER), instance("e9", "E", OTHER)]
    seen = []

    def pick(stage, candidates):
        seen.extend(each.name for each in candidates)
        return candidates[0]

    earlier = Route.through(old[0], has_media=True)
    plan_route([*old, *new], has_media=True, pick=pick, keep=earlier)
    assert seen == ["P0", "PD1"]
    with pytest.raises(NoInstanceError, match="no prefill instance is available any more"):
        plan_route([*old[2:], *new], has_media=True, pick=pick, keep=earlier)
    with pytest.raises(NoInstanceError, match="no encode instance"):
        plan_route(new, has_media=True, pick=pick, keep=earlier)


@pytest.mark.parametrize(
    ("letters", "has_media", "message"),
    [
        ((), False, "no prefill instance and no decode instance is available"),
        (("P", "D"), True, "no encode instance is available"),
        (("E",), True, "no prefill instance and no decode instance is available"),
        (("ED",), True, "no prefill instance is available"),
    ],
)
def test_a_missing_stage_is_named(letters, has_media, message):
    with pytest.raises(NoInstanceError) as caught:
        plan_route(named(*letters), has_media=has_media, pick=first)
    assert str(caught.value) == message
    assert caught.value.status == 503
    assert caught.value.retry_after_s


def test_two_fingerprints_are_told_apart_by_what_differs():
    instances = [*named("E", "P"), instance("d9", "D", OTHER)]
    with pytest.raises(NoInstanceError) as caught:
        plan_route(instances, has_media=True, pick=first)
    assert str(caught.value) == (
        "no decode instance of the fingerprint of E0 is available: d9 differs in processor: p0 != p9"
    )


def _peers(instances, route, role):
    return [each.name for each in peers(instances, route, role)]


def test_encoding_goes_to_those_that_do_nothing_else():
    instances = named("E", "P", "EP", "ED", "E")
    route = Route.through(instances[1], has_media=True)
    assert _peers(instances, route, Role.ENCODE) == ["E0", "E4"]
    assert _peers(instances[1:4], route, Role.ENCODE) == ["EP2", "ED3"]


def test_decoding_stays_in_the_group():
    instances = [*named("P", "D", "PD"), instance("other", "D", OTHER)]
    route = Route.through(instances[0], has_media=False)
    assert _peers(instances, route, Role.DECODE) == ["D1", "PD2"]


def test_prefill_peers_lead_the_same_way():
    instances = named("P", "EP", "PD", "EPD", "P")
    assert _peers(instances, Route.through(instances[0], has_media=True), Role.PREFILL) == ["P0", "P4"]
    assert _peers(instances, Route.through(instances[1], has_media=True), Role.PREFILL) == ["EP1"]
    assert _peers(instances, Route.through(instances[0], has_media=False), Role.PREFILL) == [
        "P0",
        "EP1",
        "P4",
    ]


def test_no_peer_is_left():
    instances = named("P", "D")
    route = Route.through(instances[0], has_media=False)
    with pytest.raises(NoInstanceError, match="no decode instance is available any more"):
        peers(instances[:1], route, Role.DECODE)


def test_who_serves_a_model():
    base, adapted = instance("a", "PD"), instance("b", "PD", models=("tiny", "adapter"))
    other = instance("c", "E", models=("other",))
    assert serving([base, adapted, other], "tiny") == (base, adapted)
    assert serving([base, adapted, other], "adapter") == (adapted,)
    assert serving([other, base], None) == (base,)
    assert serving([], "tiny") == ()
    with pytest.raises(UnknownModelError, match=r"`no` does not exist\. Valid aliases: adapter, tiny\.") as caught:
        serving([adapted], "no")
    assert (caught.value.status, caught.value.param) == (404, "model")


def test_missing_stages():
    assert missing(named("E", "PD")) == []
    assert missing(named("D")) == [Role.ENCODE, Role.PREFILL]


def test_only_those_with_a_decode_instance_of_the_same_connector_prefill():
    seen = []

    def pick(stage, candidates):
        seen.extend(each.name for each in candidates)
        return candidates[0]

    instances = [
        instance("p-ours", "P", kv="epd"),
        instance("p-theirs", "P", kv="nixl"),
        instance("pd", "PD"),
        instance("d-theirs", "D", kv="nixl"),
    ]
    plan_route(instances, has_media=False, pick=pick)
    assert seen == ["p-theirs", "pd"]


def test_decode_goes_to_instances_of_the_same_connector():
    ours = [instance("p", "P", kv="epd"), instance("p2", "EP", kv="epd"), instance("d", "D", kv="epd")]
    others = [instance("p3", "P", kv="nixl"), instance("d3", "D", kv="nixl"), instance("pd", "PD")]
    route = Route.through(ours[0], has_media=False)
    assert peers([*ours, *others], route, Role.DECODE) == (ours[2],)
    assert peers([*ours, *others], route, Role.PREFILL) == (ours[0], ours[1])
    with pytest.raises(NoInstanceError, match="no decode instance is available any more"):
        peers([*ours[:2], *others], route, Role.DECODE)


def test_connectors_that_do_not_match_are_named():
    instances = [instance("p", "P", kv="epd"), instance("pd", "D", kv="nixl")]
    with pytest.raises(NoInstanceError, match="of p: its KV connector is epd, that of pd is nixl"):
        plan_route(instances, has_media=False, pick=first)


def test_parts_of_kv_caches_go_to_instances_of_as_many_parts():
    wide = [instance("p2", "P", kv="epd", kv_shards=2), instance("d2", "D", kv="epd", kv_shards=2)]
    narrow = [instance("p", "P", kv="epd"), instance("d", "D", kv="epd")]
    for prefill, decode in (wide, narrow):
        route = Route.through(prefill, has_media=False)
        assert peers([*narrow, *wide], route, Role.DECODE) == (decode,)
        assert peers([*narrow, *wide], route, Role.PREFILL) == (prefill,)


def test_tensor_parallel_sizes_that_do_not_match_are_named():
    instances = [
        instance("p", "P", kv="epd", kv_shards=2),
        instance("theirs", "D", kv="nixl"),
        instance("d", "D", kv="epd"),
    ]
    reason = "of p: its tensor-parallel size is 2, that of d is 1; give both the same, or use --epd-kv-connector nixl"
    with pytest.raises(NoInstanceError, match=reason):
        plan_route(instances, has_media=False, pick=first)
