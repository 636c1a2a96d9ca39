# SPDX-License-Identifier: Apache-2.0
"""Have the answer generated, and pass it on as it comes."""

from vllm_epd.errors import UpstreamError
from vllm_epd.router import jsonio, sse
from vllm_epd.router.answers import clean_answer, failure
from vllm_epd.router.client import InstanceAnswer
from vllm_epd.router.context import RequestContext
from vllm_epd.router.requests import decode_body
from vllm_epd.router.sinks import Sink
from vllm_epd.types import Role

_STAGE = Role.DECODE.value


class DecodeStep:
    """Asks D; or, where one instance prefills too, that instance.

    It keeps the request's own id, so that the client's answer carries the id that a single server gives.
    """

    name = _STAGE

    def applies(self, ctx: RequestContext) -> bool:
        """Always, but for what has been answered as several branches."""
        return not ctx.answered

    async def run(self, ctx: RequestContext) -> None:
        """Generate, and give the answer to the sink."""
        route = ctx.planned
        raw = ctx.request.raw if route.alone else jsonio.encode(_body(ctx))
        instance = ctx.pick(Role.DECODE) if route.splits else route.prefill
        ctx.hold.close()
        index = ctx.branch.index
        headers = ctx.headers_for(f"-{index}" if index else "")
        with instance.busy():
            async with ctx.services.client.post(
                Role.DECODE, instance, ctx.request.api.value, raw, headers
            ) as answer:
                if answer.is_stream:
                    await _relay(answer, ctx.sink, instance.name)
                else:
                    await ctx.sink.body(clean_answer(await answer.read(), _STAGE))
        ctx.answered = True


def _body(ctx: RequestContext) -> jsonio.JsonObject:
    return decode_body(ctx.request, ctx.branch, ctx.encoded, ctx.kv)


async def _relay(answer: InstanceAnswer, sink: Sink, instance: str) -> None:
    """Pass events on unchanged, each as soon as it is whole.

    A stream that begins with an error has not begun for the client: it gets the status that the error names.
    """
    splitter = sse.EventSplitter()
    first = True
    async for chunk in answer.chunks():
        events = splitter.feed(chunk)
        if not events:
            continue
        if first and sse.starts_with_error(events):
            raise failure(next(sse.data_of(events)), _STAGE, instance)
        first = False
        await sink.events(events)
    if rest := splitter.close():
        await sink.events(rest)
    if not splitter.done:
        raise UpstreamError(f"{_STAGE} instance {instance} ended its stream too early", stage=_STAGE)
