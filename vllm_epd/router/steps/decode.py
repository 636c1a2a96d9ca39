# SPDX-License-Identifier: Apache-2.0
"""Have the answer generated, and pass it on as it comes."""

from vllm_epd.errors import NoInstanceError, UpstreamError
from vllm_epd.router import jsonio, sse
from vllm_epd.router.answers import clean_answer, opening_failure, says_nothing
from vllm_epd.router.client import InstanceAnswer
from vllm_epd.router.context import RequestContext
from vllm_epd.router.first_token import RESUME
from vllm_epd.router.instances import Instance
from vllm_epd.router.plan import RETRY_AFTER_S
from vllm_epd.router.requests import decode_body
from vllm_epd.types import Role

_STAGE = Role.DECODE.value


class DecodeStep:
    """Asks D; or, where one instance prefills too, that instance.

    It keeps the request's own id, so that the client's answer carries the id that a single server gives.
    """

    name = _STAGE

    def applies(self, ctx: RequestContext) -> bool:
        """Always, but for what has been answered as several branches, or by P alone."""
        return not ctx.answered

    async def run(self, ctx: RequestContext) -> None:
        """Generate, and give the answer to the sink."""
        instance = _decoder(ctx) if ctx.planned.splits else ctx.planned.prefill
        ctx.hold.close()
        index = ctx.branch.index
        headers = ctx.headers_for(f"-{index}" if index else "")
        with instance.busy():
            async with ctx.services.client.post(
                Role.DECODE, instance, ctx.request.api.value, _body(ctx), headers
            ) as answer:
                if ctx.offer is not None:
                    ctx.offer.taken = True
                ctx.forget_body()
                if answer.is_stream:
                    await _relay(answer, ctx, instance.name)
                else:
                    whole = clean_answer(await answer.read(), _STAGE)
                    _note_prefilled(ctx)
                    await ctx.sink.body(whole)
        ctx.answered = True


def _decoder(ctx: RequestContext) -> Instance:
    """The instance that expects the KV cache if it may still be given work, another one otherwise."""
    candidates = ctx.peers(Role.DECODE)
    if ctx.offer is not None:
        if ctx.offer.decoder in candidates:
            return ctx.offer.decoder
        ctx.offer.pass_over()
    if ctx.resumes:
        candidates = tuple(each for each in candidates if each.info.limits.get(RESUME))
    if not candidates:
        raise NoInstanceError("no decode instance can go on from a first token", retry_after_s=RETRY_AFTER_S)
    return ctx.services.chooser.pick(Role.DECODE, candidates)


def _body(ctx: RequestContext) -> bytes:
    if ctx.planned.alone:
        return ctx.request.raw or jsonio.encode(ctx.request.body)
    return jsonio.encode(decode_body(ctx.request, ctx.branch, ctx.encoded, ctx.kv))


def _note_prefilled(ctx: RequestContext) -> None:
    if not ctx.planned.splits:
        ctx.leases.prefilled()


async def _relay(answer: InstanceAnswer, ctx: RequestContext, instance: str) -> None:
    """Pass events on unchanged, each as soon as it is whole.

    A stream has not begun for the client before it says something: what fails until then gets the status
    that the failure names.
    """
    splitter = sse.EventSplitter()
    held, begun = b"", False
    async for chunk in answer.chunks():
        events = held + splitter.feed(chunk)
        if not begun:
            if failure := opening_failure(events, instance):
                raise failure
            held, begun = (events, False) if says_nothing(events) else (b"", bool(events))
            if begun:
                _note_prefilled(ctx)
        if events and begun:
            await ctx.sink.events(events)
    if rest := held + splitter.close():
        await ctx.sink.events(rest)
    if not splitter.done:
        raise UpstreamError(f"{_STAGE} instance {instance} ended its stream too early", stage=_STAGE)
