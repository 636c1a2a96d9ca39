# SPDX-License-Identifier: Apache-2.0
"""Have the prompt prefilled by an instance that keeps the KV cache for another one."""

from vllm_epd.router.answers import decode_answer, handed_over, offered
from vllm_epd.router.context import RequestContext
from vllm_epd.router.embeddings import read_description
from vllm_epd.router.first_token import may_resume
from vllm_epd.router.jsonio import JsonObject
from vllm_epd.router.offers import Offer
from vllm_epd.router.requests import EPD, prefill_body
from vllm_epd.router.seats import Seat
from vllm_epd.router.steps.open import open_answer
from vllm_epd.router.steps.wait import seats_to_prefill
from vllm_epd.router.timeline import Span
from vllm_epd.types import Role


class PrefillStep:
    """Asks P for one token and keeps what says where the KV cache is.

    Over our own connector the token may be the first one of the answer, and D is chosen now: it fetches the KV cache
    while P still prefills.

    From P's answer on its KV cache waits for D, at most for P's lease. A client that leaves between the two calls
    strands it for that long over NIXL; over our own connector P is told.
    """

    span = Span.PREFILL

    def applies(self, ctx: RequestContext) -> bool:
        """If another instance decodes."""
        return ctx.planned.splits and ctx.kv is None and not ctx.answered

    async def run(self, ctx: RequestContext) -> None:
        """Prefill; learn of the media what P encoded itself; have the answer opened if its first token is P's."""
        ctx.close_offer()
        place, decode = await seats_to_prefill(ctx)
        ctx.offer = offer = None if decode is None else _offer(ctx, place, decode)
        samples = offer is not None and not ctx.sent and may_resume(ctx.request, ctx.planned.prefill, offer.decoder)
        scheduling = ctx.services.scheduling
        began = scheduling.clock()
        answer = await _ask(ctx, offer, samples)
        scheduling.took(Role.PREFILL, place.ask.work, began)
        if offer is not None:
            place.end()  # otherwise P keeps the KV cache until D has come for it
        ctx.leases.prefilled()
        _note_media(ctx, answer)
        if samples and offer is not None:
            await open_answer(ctx, offer, answer)
        if not ctx.answered and ctx.kv is None:
            ctx.kv = _kv(ctx, offer, answer)
        ctx.forget_media()


def _offer(ctx: RequestContext, place: Seat, decode: Seat) -> Offer:
    return ctx.services.kv.offer(ctx.request_id, place.instance, decode, ctx.demand.most(ctx.branch.prompt))


async def _ask(ctx: RequestContext, offer: Offer | None, samples: bool) -> JsonObject:
    instance = ctx.planned.prefill
    transfer = None if offer is None else offer.transfer
    body = ctx.request.written(
        prefill_body(ctx.request, ctx.branch, ctx.encoded, offer=transfer, samples=samples, sent=ctx.sent)
    )
    ctx.turn_to(Role.PREFILL, instance)
    headers = ctx.headers_for(_suffix(ctx.branch.index))
    raw = await ctx.services.client.ask(
        Role.PREFILL, instance, ctx.request.api, body, headers, timeout_s=ctx.time_for(Role.PREFILL)
    )
    return decode_answer(raw, Role.PREFILL.value)


def _kv(ctx: RequestContext, offer: Offer | None, answer: JsonObject) -> JsonObject:
    """What tells D where the KV cache is, for D to generate all tokens."""
    name = ctx.planned.prefill.name
    if offer is None:
        return handed_over(answer, name)
    ctx.services.metrics.first_token(Role.DECODE)
    return {EPD: offered(answer, offer.transfer, name)}


def _note_media(ctx: RequestContext, answer: JsonObject) -> None:
    if ctx.planned.raw_media and ctx.encoded is None:
        items = read_description(answer, len(ctx.request.media), ctx.planned.prefill.name)
        ctx.items.update(enumerate(items))


def _suffix(index: int) -> str:
    return f"-p{index}" if index else "-p"
