# SPDX-License-Identifier: Apache-2.0
"""The generating APIs: read a request, run the pipeline, answer."""

from functools import partial

from aiohttp import web

from vllm_epd.errors import BadRequestError, RequestError
from vllm_epd.router.context import RequestContext, Services
from vllm_epd.router.deadlines import read_deadline
from vllm_epd.router.inline import NOTHING, SHORTEST, Cutter, Inline
from vllm_epd.router.keys import PIPELINE, SERVICES
from vllm_epd.router.pipeline import log_failure
from vllm_epd.router.record import RECORD, Record
from vllm_epd.router.requests import Api, ClientRequest, parse_request
from vllm_epd.router.sinks import ClientSink
from vllm_epd.router.timeline import Span

#: Headers of a client that every instance gets: who asks, how urgent it is, and the trace it belongs to.
PASSED_ON = ("Authorization", "X-Session-ID", "X-Vllm-Priority", "traceparent", "tracestate")


async def chat_completions(request: web.Request) -> web.StreamResponse:
    """POST /v1/chat/completions."""
    return await _generate(request, Api.CHAT)


async def completions(request: web.Request) -> web.StreamResponse:
    """POST /v1/completions."""
    return await _generate(request, Api.COMPLETION)


async def _generate(request: web.Request, api: Api) -> web.StreamResponse:
    record = RECORD.get()
    record.api = api
    if request.content_type != "application/json":
        raise BadRequestError("Unsupported Media Type: Only 'application/json' is allowed")
    services = request.app[SERVICES]
    deadline = read_deadline(request.headers, record.timeline.arrived, services.config.ttft_slo_s)
    record.target_s = deadline.target_s
    sink = ClientSink(request, partial(_begin, services, record))
    ctx = RequestContext(
        services=services,
        request=await _receive(request, api, record),
        request_id=record.request_id,
        headers={name: request.headers[name] for name in PASSED_ON if name in request.headers},
        sink=sink,
        record=record,
        deadline=deadline,
    )
    try:
        await request.app[PIPELINE].run(ctx)
    except RequestError as error:
        if not sink.started:
            raise
        record.fail(error)
        log_failure(ctx.request_id, error)
        await sink.fail(error)
    finally:
        if ctx.transcript is not None:
            record.completion_tokens = len(ctx.transcript.tokens)
    response = await sink.finish()
    if isinstance(response, web.Response) and isinstance(response.body, bytes):
        record.count_tokens(response.body)
    return response


def _begin(services: Services, record: Record) -> None:
    """The client is about to get the first of a stream."""
    record.timeline.begin_answer()
    services.metrics.begun(record)


async def _receive(request: web.Request, api: Api, record: Record) -> ClientRequest:
    """What the client asks for."""
    with record.timeline.during(Span.RECEIVE):
        found = parse_request(api, *await _read(request))
    record.describe(found)
    return found


async def _read(request: web.Request) -> tuple[bytes, Inline]:
    """The body, with long data cut out; unlike `request.read()` it leaves none of it behind in the request."""
    if not request.body_exists:  # aiohttp gives all of these one stream, whose chunks have no end
        return b"", NOTHING
    limit = request.app[SERVICES].config.max_body_bytes
    length = request.content_length
    if length is not None and length < min(SHORTEST, limit):
        return b"".join([chunk async for chunk, _ in request.content.iter_chunks()]), NOTHING
    cutter = Cutter()
    size = 0
    async for chunk, _ in request.content.iter_chunks():
        size += len(chunk)
        if size > limit:
            raise web.HTTPRequestEntityTooLarge(max_size=limit, actual_size=size)
        cutter.feed(chunk)
    return cutter.close()


ROUTES = (
    web.post(Api.CHAT.value, chat_completions),
    web.post(Api.COMPLETION.value, completions),
)
