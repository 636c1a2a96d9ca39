# SPDX-License-Identifier: Apache-2.0
"""Get the embedding of one media part: from an instance that still holds it, or by having it encoded.

Of several requests with the same part one leads and has it encoded. The others wait until that has ended, then take
a lease of their own on the embedding; if there is none, one of them leads.
"""

import asyncio
import logging

from msgspec.structs import replace

from vllm_epd.errors import UpstreamError
from vllm_epd.router.answers import decode_answer
from vllm_epd.router.context import RequestContext
from vllm_epd.router.embeddings import Lease, read_lease, read_offer
from vllm_epd.router.encoders import Part
from vllm_epd.router.failures import SERVER_ERROR, UnreachableError
from vllm_epd.router.holds import Leased
from vllm_epd.router.instances import Instance
from vllm_epd.router.media import EncodedItem
from vllm_epd.router.names import fresh_name, offer_name
from vllm_epd.router.placement import has_room
from vllm_epd.router.pools import kept, occupied
from vllm_epd.router.requests import encode_body
from vllm_epd.router.reuse import Known
from vllm_epd.router.steps.wait import pick_encoder
from vllm_epd.types import Role

logger = logging.getLogger(__name__)


async def settle(ctx: RequestContext, part: Part, gate: asyncio.Semaphore) -> EncodedItem:
    """The item of an admitted part, kept for this request from now on; `gate` bounds the calls made for it at once."""
    shared = ctx.services.encoders
    while part.digest is not None and not part.leads:
        if known := shared.directory.find(part.digest, ctx.fleet.instances.__contains__):
            async with gate:
                item = await _take(ctx, part, known)
            if item is not None:
                return item
            shared.directory.forget(part.digest, known)
        elif leader := shared.leaders.get(part.digest):
            await leader.closed.wait()
        else:
            shared.lead(part)
    async with gate:
        return await _encode(ctx, part)


async def _take(ctx: RequestContext, part: Part, known: Known) -> EncodedItem | None:
    """Lease an embedding that was made for another request; None if it cannot be had, for whatever reason."""
    ctx.record.asked(Role.ENCODE, known.holder.name)
    name = f"{ctx.request_id}-{part.label}:{fresh_name()}"
    lease = Lease(name, known.lease.key, known.lease.rank, known.lease.nbytes)
    try:
        handle = await ctx.services.encoders.leases.take(known.holder, lease, ctx.request.model, known.item.lora)
    except UpstreamError as error:
        logger.warning("request %s: an embedding cannot be used again: %s", ctx.request_id, error)
        if isinstance(error, UnreachableError):
            ctx.services.registry.suspend(known.holder)
        return None
    if handle is None:
        return None
    ctx.services.metrics.reused()
    return _keep(ctx, part, replace(known.item, handle=handle), known.holder, read_lease(handle) or lease)


async def _encode(ctx: RequestContext, part: Part) -> EncodedItem:
    """Have one part encoded; a second time, elsewhere if possible, where the first instance failed at it.

    Encoding changes nothing that a second try could do twice. vLLM itself fails a request now and then and counts on
    that: when one was aborted on its way, the caches of its two processes disagree about the item of the next one.
    """
    instance = part.room.instance
    if instance not in ctx.fleet.instances:
        instance = _another(ctx, part, instance)
    try:
        item = await _ask(ctx, part, instance)
    except UnreachableError:
        raise
    except UpstreamError as error:
        if error.status < SERVER_ERROR:
            raise
        logger.warning("request %s: encoding is tried again: %s", ctx.request_id, error)
        item = await _ask(ctx, part, instance := _another(ctx, part, instance))
    return _note(ctx, part, item, instance)


def _another(ctx: RequestContext, part: Part, avoid: Instance) -> Instance:
    """Another instance than `avoid` if there is one, with room if there is one."""
    found = ctx.peers(Role.ENCODE)
    others = [each for each in found if each is not avoid] or found
    estimate = ctx.services.encoders.sizes.estimate
    roomy = [each for each in others if has_room(each, part.room.slot, estimate(each.info))]
    return pick_encoder(ctx, roomy or others, part)


async def _ask(ctx: RequestContext, part: Part, instance: Instance) -> EncodedItem:
    """One try at one instance; if nobody learns of what it has encoded, it need not keep that."""
    offer = offer_name(ctx.request_id, f"{part.label}-")
    if part.worker is not instance:
        part.work_at(instance, ctx.services.encoders.sizes.estimate(instance.info))
    ctx.record.asked(Role.ENCODE, instance.name)
    headers = ctx.headers_for(f"-{part.label}")
    body = ctx.request.written(encode_body(ctx.request, ctx.request.media[part.places[0]], offer, part.shard))
    try:
        answer = await ctx.services.client.ask(
            Role.ENCODE, instance, ctx.request.api, body, headers, timeout_s=ctx.time_for(Role.ENCODE)
        )
        return read_offer(decode_answer(answer, Role.ENCODE.value), instance.name)
    except UnreachableError:
        raise
    except (UpstreamError, asyncio.CancelledError):
        ctx.services.encoders.leases.forget(instance, offer)
        raise


def _note(ctx: RequestContext, part: Part, item: EncodedItem, instance: Instance) -> EncodedItem:
    """Remember what was encoded, for later requests and for the size of the next ones."""
    shared = ctx.services.encoders
    if item.is_empty:
        shared.close(part)
        return item
    ctx.services.metrics.encoded()
    lease = read_lease(item.handle)
    if lease is not None:
        shared.sizes.note(instance.info.fingerprint, lease.nbytes * (1 if item.shard is None else item.shard.count))
        if part.digest is not None:
            shared.directory.put(part.digest, Known(item, lease, instance))
    return _keep(ctx, part, item, instance, lease)


def _keep(ctx: RequestContext, part: Part, item: EncodedItem, instance: Instance, lease: Lease | None) -> EncodedItem:
    """Let the request have the room of the part from now on, and end the part."""
    hold, part.hold = part.room, None
    if lease is not None:
        hold.move(instance, kept(lease.key), occupied(lease.nbytes, instance.info) or hold.nbytes)
    ctx.leases.add(Leased(item, hold, lease))
    ctx.services.encoders.close(part)
    return item
