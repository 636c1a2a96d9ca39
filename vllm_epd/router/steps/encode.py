# SPDX-License-Identifier: Apache-2.0
"""Get an embedding for each media part, several at once."""

import asyncio
from functools import partial

from vllm_epd.router import jsonio
from vllm_epd.router.context import RequestContext
from vllm_epd.router.costs import modality_of
from vllm_epd.router.demand import learn
from vllm_epd.router.encoders import Part
from vllm_epd.router.inline import Inline
from vllm_epd.router.media import EncodedItem, MediaPart
from vllm_epd.router.prefixes import Name, holder, whole
from vllm_epd.router.reuse import circumstances, digesting
from vllm_epd.router.shards import degree, joined, shards_of
from vllm_epd.router.steps.settle import settle
from vllm_epd.router.steps.wait import pick_encoder, room_to_encode
from vllm_epd.router.tasks import all_or_cancel
from vllm_epd.router.timeline import Span
from vllm_epd.types import Role

#: Other requests get a turn whenever so much has been hashed.
_TURN = 2**20


class EncodeStep:
    """Waits for room in the encode instances' pools, then settles all parts; a part that occurs twice only once.

    If one part fails, what was done for the others is given back, so that a request never waits for room while it
    has some.
    """

    span = Span.ENCODE

    def applies(self, ctx: RequestContext) -> bool:
        """If media is encoded apart from prefill."""
        return ctx.planned.encodes_apart and ctx.encoded is None

    async def run(self, ctx: RequestContext) -> None:
        """Settle all parts at once; the first failure cancels the others."""
        shared, scheduling = ctx.services.encoders, ctx.services.scheduling
        parts = _cut(ctx, await _distinct(ctx))
        gate = asyncio.Semaphore(ctx.services.config.fan_out)
        try:
            await room_to_encode(ctx, partial(_admit, ctx, parts))
            work, began = sum(part.cost for part in parts if part.leads), scheduling.clock()
            items = await all_or_cancel(settle(ctx, part, gate) for part in parts)
            scheduling.took(Role.ENCODE, work, began)
            _keep(ctx, parts, items)
        except BaseException:
            ctx.leases.abandon(shared.leases.release)
            raise
        finally:
            for part in parts:
                shared.close(part)
        ctx.forget_media()


def _admit(ctx: RequestContext, parts: list[Part]) -> bool:
    shared, seen, fleet = ctx.services.encoders, ctx.services.scheduling.seen_media, ctx.fleet
    if not shared.admit(parts, fleet.instances, fleet.peers(ctx.planned, Role.ENCODE), partial(pick_encoder, ctx)):
        return False
    for part in parts:
        seen.note(part.names, holder(part.room.instance.info))
    return True


def _keep(ctx: RequestContext, parts: list[Part], items: list[EncodedItem]) -> None:
    """Note the items; of several parts that turned out to be the same item, prefill is told of one."""
    pieces: dict[int, list[EncodedItem]] = {}
    for part, item in zip(parts, items, strict=True):
        pieces.setdefault(part.places[0], []).append(item)
    whole = {place: joined(each) for place, each in pieces.items()}
    learn(whole.values(), ctx.services.scheduling.means)
    told = {item.mm_hash: place for place, item in whole.items()}
    if len(told) < len(whole):
        read = [item for place in told.values() for item in pieces[place]]
        ctx.leases.drop_unread(read, ctx.services.encoders.leases.release)
    for part in parts:
        ctx.items.update(dict.fromkeys(part.places, whole[told[whole[part.places[0]].mm_hash]]))


def _cut(ctx: RequestContext, parts: list[Part]) -> list[Part]:
    """The parts, with shards in the place of those that several encoders are to work on."""
    shared, fleet = ctx.services.encoders, ctx.fleet
    present, encoders = fleet.instances.__contains__, fleet.peers(ctx.planned, Role.ENCODE)

    def made(digest: str) -> bool:
        return digest in shared.leaders or shared.directory.find(digest, present) is not None

    cut = []
    for part in parts:
        modality = modality_of(ctx.request.media[part.places[0]].part)
        count = degree(part, modality, encoders, len(parts), ctx.services.config.irp_limit, made)
        cut += shards_of(part, count)
    return cut


async def _distinct(ctx: RequestContext) -> list[Part]:
    """The distinct parts, each with its places."""
    around = circumstances(ctx.request, ctx.planned.group)
    found: dict[str | bytes, Part] = {}
    for place, media in enumerate(ctx.request.media):
        name = await _digest(media, around, ctx.request.inline)
        part = found.setdefault(
            name or jsonio.encode(media.part), Part([], name, ctx.demand.media[place], _names(ctx, media))
        )
        part.places.append(place)
    return list(found.values())


def _names(ctx: RequestContext, media: MediaPart) -> list[Name]:
    return whole(media.part) if ctx.services.scheduling.chooser.asks_who_holds(Role.ENCODE) else []


async def _digest(media: MediaPart, around: bytes, inline: Inline) -> str | None:
    if media.data is None:
        return None
    found, size = digesting(media.data, around), 0
    for piece in inline.filled(media.data.text.encode()):
        found.update(piece)
        size += len(piece)
        if size >= _TURN:
            size = 0
            await asyncio.sleep(0)
    return found.hexdigest()
