# SPDX-License-Identifier: Apache-2.0
"""The generating APIs: read a request, run the pipeline, answer."""

from collections.abc import Mapping
from functools import partial

from vllm_epd.errors import BadRequestError, RequestError
from vllm_epd.router.context import RequestContext, Services
from vllm_epd.router.deadlines import read_deadline
from vllm_epd.router.inline import NOTHING, SHORTEST, Cutter, Inline
from vllm_epd.router.parts import Parts
from vllm_epd.router.pipeline import log_failure
from vllm_epd.router.record import RECORD, Record
from vllm_epd.router.requests import Api, ClientRequest, parse_request
from vllm_epd.router.sinks import ClientSink
from vllm_epd.router.timeline import Span
from vllm_epd.router.web.messages import JSON, Request, Response
from vllm_epd.router.web.routes import Answer, Route

#: Headers of a client that every instance gets: who asks, how urgent it is, and the trace it belongs to.
PASSED_ON = ("Authorization", "X-Session-ID", "X-Vllm-Priority", "traceparent", "tracestate")


async def generate(api: Api, parts: Parts, request: Request) -> Answer:
    """POST: an answer, whole or as a stream."""
    record, services = RECORD.get(), parts.services
    record.api = api
    _check_encoding(request)
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
        await parts.pipeline.run(ctx)
    except RequestError as error:
        if not sink.started:
            raise
        record.fail(error)
        log_failure(ctx.request_id, error)
        await sink.fail(error)
    finally:
        if ctx.transcript is not None:
            record.completion_tokens = len(ctx.transcript.tokens)
    answer = await sink.finish()
    if isinstance(answer, Response):
        record.count_tokens(answer.body)
    return answer


def _begin(services: Services, record: Record) -> Mapping[str, str]:
    """The client is about to get the first of a stream; the headers that it gets before that."""
    record.timeline.begin_answer()
    services.metrics.begun(record)
    return record.headers()


def _check_encoding(request: Request) -> None:
    if request.headers.get("Content-Type", "").partition(";")[0].strip().lower() != JSON:
        raise BadRequestError("Unsupported Media Type: Only 'application/json' is allowed")
    if (coding := request.headers.get("Content-Encoding", "identity")).lower() != "identity":
        raise BadRequestError(f"a body in Content-Encoding {coding} is not taken; send it as it is")


async def _receive(request: Request, api: Api, record: Record) -> ClientRequest:
    """What the client asks for."""
    with record.timeline.during(Span.RECEIVE):
        found = parse_request(api, *await _read(request))
    record.describe(found)
    return found


async def _read(request: Request) -> tuple[bytes, Inline]:
    """The body, with long data cut out."""
    body = request.body
    if body.length is not None and body.length < SHORTEST:
        return await body.read(), NOTHING
    cutter = Cutter()
    async for chunk in body.chunks():
        cutter.feed(chunk)
    return cutter.close()


def routes(parts: Parts) -> tuple[Route, ...]:
    """All of them, for one router."""
    return tuple(Route("POST", api.value, partial(generate, api, parts)) for api in Api)
