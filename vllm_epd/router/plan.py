# SPDX-License-Identifier: Apache-2.0
"""Which instances serve one request: a pure function of who is there and what the request needs."""

from collections.abc import Iterable, Sequence
from functools import cache, partial

from msgspec import Struct
from msgspec.structs import replace

from vllm_epd.errors import NoInstanceError
from vllm_epd.router.failures import UnknownModelError
from vllm_epd.router.instances import Instance
from vllm_epd.types import Fingerprint, Role

TEXT = (Role.PREFILL, Role.DECODE)
MEDIA = (Role.ENCODE, Role.PREFILL, Role.DECODE)

#: Seconds after which a client may well find the missing instance back: a few heartbeats.
RETRY_AFTER_S = 5


class Route(Struct, frozen=True):
    """The way of one request. Roles may change later; what was planned stays.

    Attributes:
        prefill: the instance that prefills.
        splits: another instance decodes, so that the KV cache is handed over.
        encodes_apart: each media part goes to an encode instance first.
        raw_media: the prefill instance encodes too, and gets the media as the client sent it.
    """

    prefill: Instance
    splits: bool
    encodes_apart: bool
    raw_media: bool

    @classmethod
    def through(cls, prefill: Instance, *, has_media: bool) -> "Route":
        """The way that follows from the choice of the prefill instance."""
        roles = prefill.info.roles
        return cls(
            prefill=prefill,
            splits=not roles.decode,
            encodes_apart=has_media and not roles.encode,
            raw_media=has_media and roles.encode,
        )

    def by(self, prefill: Instance) -> "Route":
        """The same way with another prefill instance, or with that of before."""
        return self if prefill is self.prefill else replace(self, prefill=prefill)

    @property
    def group(self) -> Fingerprint:
        """The fingerprint that all instances of this request share."""
        return self.prefill.info.fingerprint

    @property
    def alone(self) -> bool:
        """One instance serves the request as the client wrote it."""
        return not self.splits and not self.encodes_apart


class Fleet:
    """The instances that may serve a request, and what follows from who they are, each derived once.

    Attributes:
        instances: all of them.
        who_may_prefill: `who_may_prefill` among them.
        peers: `peers` among them.
    """

    def __init__(self, instances: tuple[Instance, ...]) -> None:
        self.instances = instances
        self.who_may_prefill = cache(partial(who_may_prefill, instances))
        self.peers = cache(partial(peers, instances))


def serving(instances: Iterable[Instance], model: str | None) -> tuple[Instance, ...]:
    """Those that serve `model`; without a name, those that serve the first model of the first language model.

    Raises:
        UnknownModelError: there are instances, but none serves that model.
    """
    present = tuple(instances)
    if not present:
        return ()
    if not model:
        first = next((each for each in present if each.info.roles.language_model), present[0])
        model = first.info.models[0] if first.info.models else ""
    chosen = tuple(each for each in present if model in each.info.models)
    if not chosen:
        names = sorted({name for each in present for name in each.info.models})
        raise UnknownModelError(
            f"The model `{model}` does not exist. Valid aliases: {', '.join(names)}.", param="model"
        )
    return chosen


def who_may_prefill(
    instances: Sequence[Instance],
    *,
    has_media: bool,
    keep: Route | None = None,
    group: Fingerprint | None = None,
) -> tuple[Instance, ...]:
    """The prefill instances to choose from, and with one of them a way, among fingerprints that serve every stage.

    Args:
        instances: those that serve the model.
        has_media: whether something has to be encoded.
        keep: an earlier way with media encoded apart already; the new one can use these embeddings.
        group: the fingerprint that has generated a part of the answer; another one would go on otherwise.

    Raises:
        NoInstanceError: a stage has no instance, or none of the same fingerprint as the others, or no prefill instance
            has a decode instance of the same KV connector and, where it matters, the same tensor-parallel size.
    """
    needed = MEDIA if has_media else TEXT
    bound = group if keep is None else keep.group
    allowed = [each for each in instances if bound is None or each.info.fingerprint == bound]
    complete = [group for group in groups(allowed) if not missing(group, needed)]
    if not complete:
        raise NoInstanceError(_why_none(allowed, needed), retry_after_s=RETRY_AFTER_S)
    prefilling = [
        (each, group)
        for group in complete
        for each in group
        if each.info.roles.prefill and not (keep is not None and each.info.roles.encode)
    ]
    if not prefilling:
        raise NoInstanceError("no prefill instance is available any more", retry_after_s=RETRY_AFTER_S)
    candidates = tuple(each for each, group in prefilling if _decodable(each, group))
    if not candidates:
        raise NoInstanceError(_why_not_decodable(*prefilling[0]), retry_after_s=RETRY_AFTER_S)
    return candidates


def peers(instances: Iterable[Instance], route: Route, role: Role) -> tuple[Instance, ...]:
    """Those that may take the part of `role` in a request of this route.

    Encoding goes to instances that do nothing else, if there are any. Prefill goes to instances that lead
    to the same way, and decode to those that can take over the KV cache.

    Raises:
        NoInstanceError: there are none.
    """
    found = tuple(each for each in instances if role in each.info.roles and each.info.fingerprint == route.group)
    if role is Role.ENCODE:
        found = tuple(each for each in found if not each.info.roles.language_model) or found
    if role is Role.PREFILL:
        media = route.encodes_apart or route.raw_media
        same = [Route.through(each, has_media=media) for each in found]
        found = tuple(each.prefill for each in same if _way(each) == _way(route))
    if role is Role.DECODE and route.splits:
        found = tuple(each for each in found if each.info.kv_form == route.prefill.info.kv_form)
    if not found:
        raise NoInstanceError(f"no {role} instance is available any more", retry_after_s=RETRY_AFTER_S)
    return found


def groups(instances: Iterable[Instance]) -> list[list[Instance]]:
    """Instances by fingerprint, in order of registration."""
    by_fingerprint: dict[Fingerprint, list[Instance]] = {}
    for each in instances:
        by_fingerprint.setdefault(each.info.fingerprint, []).append(each)
    return list(by_fingerprint.values())


def missing(instances: Iterable[Instance], needed: Iterable[Role] = MEDIA) -> list[Role]:
    """The stages of `needed` that none of the instances serves."""
    present = {role for each in instances for role in each.info.roles.roles}
    return [role for role in needed if role not in present]


def handover_objection(group: Sequence[Instance]) -> str | None:
    """Why no prefill instance of a group, which has all stages, can hand over its KV caches; None where one can."""
    prefilling = [each for each in group if each.info.roles.prefill]
    if any(_decodable(each, group) for each in prefilling):
        return None
    return _why_not_decodable(prefilling[0], group)


def _way(route: Route) -> tuple[bool, bool, tuple[str, int]]:
    return route.splits, route.raw_media, route.prefill.info.kv_form


def _decodable(prefill: Instance, group: Iterable[Instance]) -> bool:
    """Whether the instance decodes itself, or one of its group can take over its KV caches."""
    return prefill.info.roles.decode or any(
        each.info.roles.decode and each.info.kv_form == prefill.info.kv_form for each in group
    )


def _why_not_decodable(prefill: Instance, group: Iterable[Instance]) -> str:
    decoding = [each for each in group if each.info.roles.decode]
    near = next((each for each in decoding if each.info.kv == prefill.info.kv), None)
    why = f"no decode instance can take over the KV caches of {prefill.name}: its"
    if near is None:
        return f"{why} KV connector is {_connector(prefill)}, that of {decoding[0].name} is {_connector(decoding[0])}"
    return (
        f"{why} tensor-parallel size is {prefill.info.kv_shards}, that of {near.name} is {near.info.kv_shards};"
        " give both the same, or use --epd-kv-connector nixl on prefill and decode"
    )


def _connector(instance: Instance) -> str:
    return instance.info.kv or "none"


def _why_none(instances: Sequence[Instance], needed: Sequence[Role]) -> str:
    absent = missing(instances, needed)
    if absent:
        return " and ".join(f"no {role} instance" for role in absent) + " is available"
    base = min(groups(instances), key=lambda group: len(missing(group, needed)))
    role = missing(base, needed)[0]
    here = base[0]
    there = next(each for each in instances if role in each.info.roles)
    differences = "; ".join(here.info.fingerprint.differences(there.info.fingerprint))
    return f"no {role} instance of the fingerprint of {here.name} is available: {there.name} differs in {differences}"
