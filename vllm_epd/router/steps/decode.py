# SPDX-License-Identifier: Apache-2.0
"""Have the answer generated, and pass it on as it comes."""

from collections.abc import AsyncIterator

from vllm_epd.errors import UpstreamError
from vllm_epd.router import sse
from vllm_epd.router.answers import clean_answer, opening_failure, says_nothing, split_failure
from vllm_epd.router.client import InstanceAnswer
from vllm_epd.router.context import RequestContext
from vllm_epd.router.continuation import StreamContinuation
from vllm_epd.router.failures import SERVER_ERROR, BrokenOffError, UnreachableError
from vllm_epd.router.first_token import may_resume
from vllm_epd.router.inline import Pieces
from vllm_epd.router.instances import Instance
from vllm_epd.router.requests import decode_body
from vllm_epd.router.sinks import PrecededSink, RewrittenSink, Sink
from vllm_epd.router.steps.wait import seat_to_decode
from vllm_epd.router.timeline import Span
from vllm_epd.router.transcript import Transcript
from vllm_epd.types import Role

_STAGE = Role.DECODE.value
#: What says nothing about a pair of instances: one of them is gone.
_GONE = (UnreachableError, BrokenOffError)


class DecodeStep:
    """Asks D; or, where one instance prefills too, that instance.

    It keeps the request's own id, so that the client's answer carries the id that a single server gives.
    """

    span = Span.DECODE

    def applies(self, ctx: RequestContext) -> bool:
        """Always, but for what has been answered as several branches, or by P alone."""
        return not ctx.answered

    async def run(self, ctx: RequestContext) -> None:
        """Generate, and give the answer to the sink."""
        seat = await seat_to_decode(ctx)
        instance = seat.instance
        ctx.turn_to(Role.DECODE, instance)
        ctx.hold.close()
        with seat:
            try:
                await _generate(ctx, instance)
            except UpstreamError as error:
                _note_failed(ctx, instance, error)
                raise
        ctx.services.recovery.pairs.succeeded(ctx.planned.prefill, instance)
        ctx.answered = True


async def _generate(ctx: RequestContext, instance: Instance) -> None:
    sink = _sink(ctx, instance)
    index = ctx.branch.index
    headers = ctx.headers_for(f"-{index}" if index else "")
    async with ctx.services.client.post(
        Role.DECODE, instance, ctx.request.api, _body(ctx), headers, timeout_s=ctx.time_for(Role.DECODE)
    ) as answer:
        ctx.forget_body()
        if answer.is_stream:
            await _relay(answer, ctx, sink, instance.name)
        else:
            whole = clean_answer(await answer.read(), _STAGE)
            _note_begun(ctx)
            await sink.body(whole)


def _sink(ctx: RequestContext, instance: Instance) -> Sink:
    """The client's, behind what keeps a transcript and what has the answer follow the tokens that were sent."""
    if not ctx.request.stream:
        return ctx.sink if ctx.opening is None else PrecededSink(ctx.sink, ctx.opening)
    if ctx.transcript is None and _may_be_continued(ctx, instance):
        ctx.transcript = Transcript(wants_usage=ctx.request.wants_usage)
    if ctx.transcript is None:
        return ctx.sink
    noted = RewrittenSink(ctx.sink, ctx.transcript.pass_on)
    if not ctx.sink.started:
        return noted
    sent, created = len(ctx.transcript.tokens), ctx.transcript.created
    return RewrittenSink(noted, StreamContinuation(ctx.request.api, sent, created).rewrite)


def _may_be_continued(ctx: RequestContext, instance: Instance) -> bool:
    """Whether another instance could go on with the stream; a body that is passed on with its media stays as it is."""
    whole = ctx.planned.alone and ctx.planned.raw_media
    return bool(ctx.services.recovery.retries) and not whole and may_resume(ctx.request, ctx.planned.prefill, instance)


def _body(ctx: RequestContext) -> Pieces:
    request, tells = ctx.request, ctx.transcript is not None
    if ctx.planned.alone and not tells:
        return request.inline.filled(request.raw) if request.raw else request.written(request.body)
    return request.written(decode_body(request, ctx.branch, ctx.encoded, ctx.kv, sent=ctx.sent, tells_tokens=tells))


def _note_failed(ctx: RequestContext, instance: Instance, error: UpstreamError) -> None:
    """Remember that P and D do not get on: one that answers that it failed may be well with others."""
    if ctx.planned.splits and error.status >= SERVER_ERROR and not isinstance(error, _GONE):
        ctx.services.recovery.pairs.failed(ctx.planned.prefill, instance)


def _note_begun(ctx: RequestContext) -> None:
    """D has generated something, so it has all that it needs of what others keep for the request."""
    if ctx.offer is not None:
        ctx.offer.taken = True
    if not ctx.planned.splits:
        ctx.leases.prefilled()


async def _until_whole(
    answer: InstanceAnswer, splitter: sse.EventSplitter, transcript: Transcript | None
) -> AsyncIterator[bytes]:
    """The body as it arrives; that it breaks off once the client has all of it is no matter."""
    try:
        async for chunk in answer.chunks():
            yield chunk
    except BrokenOffError:
        if not splitter.done and (transcript is None or not transcript.whole):
            raise


async def _relay(answer: InstanceAnswer, ctx: RequestContext, sink: Sink, instance: str) -> None:
    """Pass events on, each as soon as it is whole.

    A stream has not begun for the client before it says something: what fails until then gets the status
    that the failure names.
    """
    splitter = sse.EventSplitter()
    held, begun = b"", False
    async for chunk in _until_whole(answer, splitter, ctx.transcript):
        events = held + splitter.feed(chunk)
        if not begun:
            if failure := opening_failure(events, instance):
                raise failure
            held, begun = (events, False) if says_nothing(events) else (b"", bool(events))
            if begun:
                _note_begun(ctx)
        if events and begun:
            events, failed = split_failure(events, instance)
            if events:
                await sink.events(events)
            if failed is not None:
                raise failed
    if rest := held + splitter.close():
        await sink.events(rest)
    if not splitter.done:
        if ctx.transcript is not None and ctx.transcript.whole:
            await ctx.sink.events(sse.DONE)
            return
        raise BrokenOffError(f"{_STAGE} instance {instance} ended its stream too early", stage=_STAGE)
