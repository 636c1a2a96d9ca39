# SPDX-License-Identifier: Apache-2.0
"""Begin the client's answer with the token that P has sampled, before D is asked."""

from vllm_epd.router.answers import offered
from vllm_epd.router.context import RequestContext
from vllm_epd.router.jsonio import JsonObject
from vllm_epd.router.offers import Offer
from vllm_epd.router.opening import Opening
from vllm_epd.router.requests import EPD
from vllm_epd.router.transcript import Transcript
from vllm_epd.types import Role


async def open_answer(ctx: RequestContext, offer: Offer, answer: JsonObject) -> None:
    """Give P's token to the client and have D go on from it; or give the whole answer, where nothing comes after it.

    Neither is done where the token has no text of its own.

    Raises:
        UpstreamError: P's answer is not what was asked for.
    """
    prefill = ctx.planned.prefill
    opening = Opening.of(ctx.request, ctx.request.api.id_prefix + ctx.request_id, answer, prefill.name)
    if opening.ends(ctx.request.max_tokens, _max_model_len(ctx, offer)):
        await _give_whole(ctx, opening)
        return
    found = offered(answer, offer.transfer, prefill.name)
    if type(found.get("first")) is not int or not opening.is_whole:
        return
    if ctx.request.stream:
        await ctx.sink.events(opening.events())
        ctx.transcript = Transcript(tokens=[opening.token], created=opening.created, wants_usage=opening.with_usage)
    ctx.kv = {EPD: found}
    ctx.opening = opening
    ctx.services.metrics.first_token(Role.PREFILL)


async def _give_whole(ctx: RequestContext, opening: Opening) -> None:
    if ctx.request.stream:
        await ctx.sink.events(opening.whole_stream())
    else:
        await ctx.sink.body(opening.body())
    ctx.answered = True
    ctx.services.metrics.first_token(Role.PREFILL)


def _max_model_len(ctx: RequestContext, offer: Offer) -> int | None:
    """The shortest context of the two instances, as far as it is known."""
    limits = (each.info.limits.get("max_model_len") for each in (ctx.planned.prefill, offer.decoder))
    return min((limit for limit in limits if limit is not None), default=None)
