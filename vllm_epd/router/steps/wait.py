# SPDX-License-Identifier: Apache-2.0
"""Wait for a place at the instances of a stage, in the order of its queue, and take it."""

from collections.abc import Callable, Hashable, Sequence
from functools import partial

from vllm_epd.errors import NoInstanceError
from vllm_epd.router import access
from vllm_epd.router.capacity import Ask
from vllm_epd.router.context import RequestContext
from vllm_epd.router.costs import inline_size, modality_of
from vllm_epd.router.demand import estimate
from vllm_epd.router.encoders import Part
from vllm_epd.router.instances import Instance
from vllm_epd.router.ordering import Ticket
from vllm_epd.router.placement import Need
from vllm_epd.router.prefixes import BLOCK_TOKENS, holder
from vllm_epd.router.requests import EPD
from vllm_epd.router.seats import Seat
from vllm_epd.router.timeline import QUEUE, STAGE, Span
from vllm_epd.types import Role


def measure(ctx: RequestContext) -> None:
    """Estimate what the request asks for, once and while its media is at hand."""
    if not ctx.demand.texts:
        scheduling = ctx.services.scheduling
        named = scheduling.chooser.asks_who_holds(Role.PREFILL)
        ctx.demand = estimate(ctx.request, scheduling.means, named=named)
        if access.wanted():
            _describe(ctx)


def _describe(ctx: RequestContext) -> None:
    """Note for the access log what the request asks for."""
    record, request = ctx.record, ctx.request
    kinds = (modality_of(each.part) for each in request.media)
    record.media_tokens = tuple(zip(kinds, ctx.demand.media, strict=True))
    record.media_sizes = tuple(inline_size(each, request.inline) for each in request.media)
    record.text_tokens = sum(ctx.demand.texts)


def pick_prefill(ctx: RequestContext, candidates: Sequence[Instance]) -> Instance:
    """Choose who prefills the prompt of this branch."""
    names, scheduling = ctx.demand.names(ctx.branch.prompt), ctx.services.scheduling

    def holds(instance: Instance) -> float:
        return float(BLOCK_TOKENS * scheduling.seen_prompts.blocks(names, holder(instance.info)))

    return scheduling.chooser.pick(Role.PREFILL, ctx.well(Role.PREFILL, candidates), holds)


def pick_encoder(ctx: RequestContext, candidates: Sequence[Instance], part: Part | Need) -> Instance:
    """Choose who encodes a media part."""
    scheduling = ctx.services.scheduling

    def holds(instance: Instance) -> float:
        return part.cost * scheduling.seen_media.blocks(part.names, holder(instance.info))

    return scheduling.chooser.pick(Role.ENCODE, ctx.well(Role.ENCODE, candidates), holds)


def check_in_time(ctx: RequestContext) -> None:
    """Refuse at once what would wait in vain for a stage of the planned way, before any other stage works for it.

    Raises:
        QueueFullError: as many requests wait for a stage as may.
        TooLateError: the request's own time will be over.
    """
    queues, route = ctx.services.scheduling.queues, ctx.planned
    ctx.time_for(Role.PREFILL)
    if route.encodes_apart and ctx.encoded is None:
        queues[Role.ENCODE].check(route.group, partial(ticket, ctx, Role.ENCODE), ctx.deadline.limit)
    queues[Role.PREFILL].check(_way(ctx), partial(ticket, ctx, Role.PREFILL), ctx.deadline.limit)


def ticket(ctx: RequestContext, stage: Role) -> Ticket:
    """What decides about the place of a request in the queue of a stage."""
    work = sum(ctx.demand.media) if stage is Role.ENCODE else _ask(ctx, stage).work
    service_s = ctx.services.scheduling.paces[stage].seconds(work)
    return Ticket(ctx.deadline.arrived, work, ctx.deadline.due, service_s)


async def room_to_encode(ctx: RequestContext, attempt: Callable[[], bool]) -> None:
    """Wait for room in the pools of encode instances, which `attempt` takes.

    Raises:
        NoInstanceError: there has been none for as long as encoding may take.
        QueueFullError, TooLateError: see `StageQueue`.
    """
    await _enter(ctx, Role.ENCODE, ctx.planned.group, attempt, "the pools of the encode instances have been full")


async def seats_to_prefill(ctx: RequestContext) -> tuple[Seat, Seat | None]:
    """A place at P, and one at D where it is to fetch the KV cache while P works.

    Both are taken at once or not at all, so that no request keeps the one while it waits for the other. What the
    request has held of P's attention so far, `ctx.hold`, gives way to the place at P.

    Raises:
        NoInstanceError: there is no instance, or none has had room for as long as prefill may take.
        QueueFullError, TooLateError: see `StageQueue`.
    """
    if (items := ctx.encoded) and len(items) == len(ctx.demand.media):
        ctx.demand = ctx.demand.with_items(items)
    taken: list[Seat] = []
    await _enter(ctx, Role.PREFILL, _way(ctx), partial(_take_pair, ctx, taken))
    prefill, *decode = taken
    ctx.hold.close()
    ctx.hold.seat(prefill)
    return prefill, decode[0] if decode else None


async def seat_to_decode(ctx: RequestContext) -> Seat:
    """A place where the answer is generated: the one that has been kept for it, or another one.

    Raises:
        NoInstanceError: there is no instance, or none has had room for as long as decode may take.
        QueueFullError, TooLateError: see `StageQueue`.
    """
    taken: list[Seat] = []
    if not ctx.planned.splits:
        await _enter(ctx, Role.PREFILL, _way(ctx), partial(_take_whole, ctx, taken), step=Span.DECODE)
    else:
        if ctx.offer is not None:
            if (decoder := ctx.offer.decoder) in ctx.peers(Role.DECODE) and decoder not in ctx.failed:
                # An earlier attempt may have ended it; what D has fetched is there all the same.
                return _sit(ctx, decoder, ctx.offer.seat.ask) if ctx.offer.seat.ended else ctx.offer.seat
            ctx.offer.pass_over()
        await _enter(ctx, Role.DECODE, _way(ctx), partial(_take_decoder, ctx, taken))
    return taken[0]


def _take_pair(ctx: RequestContext, taken: list[Seat]) -> bool:
    ask = _ask(ctx, Role.PREFILL)
    prefill = _roomy_prefill(ctx, ask)
    if prefill is None:
        return False
    if prefill.info.kv == EPD:
        ctx.route = ctx.planned.by(prefill)
        if not _take_decoder(ctx, taken):
            return False
    taken.insert(0, _sit_to_prefill(ctx, prefill, ask))
    return True


def _take_whole(ctx: RequestContext, taken: list[Seat]) -> bool:
    ask = _ask(ctx, Role.PREFILL)
    instance = _roomy_prefill(ctx, ask)
    if instance is None:
        return False
    taken.append(_sit_to_prefill(ctx, instance, ask))
    return True


def _take_decoder(ctx: RequestContext, taken: list[Seat]) -> bool:
    ask = _ask(ctx, Role.DECODE)
    if not (roomy := _roomy(ctx.well(Role.DECODE, ctx.peers(Role.DECODE)), ask)):
        return False
    taken.append(_sit(ctx, ctx.services.scheduling.chooser.pick(Role.DECODE, roomy), ask))
    return True


def _roomy_prefill(ctx: RequestContext, ask: Ask) -> Instance | None:
    """The planned instance if it is still there and has room, else another one that leads to the same way."""
    roomy = _roomy(ctx.well(Role.PREFILL, ctx.peers(Role.PREFILL)), ask)
    planned = ctx.planned.prefill
    if planned in roomy or not roomy:
        return planned if roomy else None
    return pick_prefill(ctx, roomy)


def _sit_to_prefill(ctx: RequestContext, instance: Instance, ask: Ask) -> Seat:
    ctx.route = ctx.planned.by(instance)
    if names := ctx.demand.names(ctx.branch.prompt):
        seen, who = ctx.services.scheduling.seen_prompts, holder(instance.info)
        ctx.services.metrics.sent_prompt(BLOCK_TOKENS * len(names), BLOCK_TOKENS * seen.blocks(names, who))
        seen.note(names, who)
    return _sit(ctx, instance, ask)


def _sit(ctx: RequestContext, instance: Instance, ask: Ask) -> Seat:
    return Seat(instance, ask, ctx.services.scheduling.seat_freed)


def _roomy(candidates: Sequence[Instance], ask: Ask) -> list[Instance]:
    return [each for each in candidates if each.seated.fits(ask, each.info)]


def _ask(ctx: RequestContext, stage: Role) -> Ask:
    if not ctx.planned.splits:
        return ctx.demand.both()
    prompt = ctx.branch.prompt
    return ctx.demand.decode(prompt) if stage is Role.DECODE else ctx.demand.prefill(prompt)


def _way(ctx: RequestContext) -> Hashable:
    """Equal for requests that wait for the same instances."""
    route = ctx.planned
    return route.group, ctx.request.model, route.splits, route.raw_media, route.prefill.info.kv


async def _enter(
    ctx: RequestContext,
    stage: Role,
    group: Hashable,
    attempt: Callable[[], bool],
    why: str | None = None,
    step: Span | None = None,
) -> None:
    scheduling, patience_s = ctx.services.scheduling, ctx.services.config.timeouts.of(stage)
    until = scheduling.clock() + patience_s
    try:
        with ctx.record.timeline.during(QUEUE[stage], within=step or STAGE[stage]):
            known = partial(ticket, ctx, stage)
            await scheduling.queues[stage].enter(group, known, attempt, until, ctx.deadline.limit)
    except TimeoutError as error:
        why = why or f"no {stage} instance has had room"
        raise NoInstanceError(f"{why} for {patience_s:g} s", retry_after_s=1) from error
