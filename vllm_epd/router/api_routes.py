# SPDX-License-Identifier: Apache-2.0
"""The generating APIs: read a request, run the pipeline, answer."""

from aiohttp import web

from vllm_epd.errors import BadRequestError, RequestError
from vllm_epd.router.context import RequestContext
from vllm_epd.router.keys import PIPELINE, REQUEST_ID, SERVICES
from vllm_epd.router.pipeline import log_failure
from vllm_epd.router.requests import Api, parse_request
from vllm_epd.router.sinks import ClientSink

#: Headers of a client that every instance gets: who asks, how urgent it is, and the trace it belongs to.
PASSED_ON = ("Authorization", "X-Session-ID", "X-Vllm-Priority", "traceparent", "tracestate")


async def chat_completions(request: web.Request) -> web.StreamResponse:
    """POST /v1/chat/completions."""
    return await _generate(request, Api.CHAT)


async def completions(request: web.Request) -> web.StreamResponse:
    """POST /v1/completions."""
    return await _generate(request, Api.COMPLETION)


async def _generate(request: web.Request, api: Api) -> web.StreamResponse:
    if request.content_type != "application/json":
        raise BadRequestError("Unsupported Media Type: Only 'application/json' is allowed")
    parsed = parse_request(api, await request.read())
    sink = ClientSink(request)
    ctx = RequestContext(
        services=request.app[SERVICES],
        request=parsed,
        request_id=REQUEST_ID.get(),
        headers={name: request.headers[name] for name in PASSED_ON if name in request.headers},
        sink=sink,
    )
    try:
        await request.app[PIPELINE].run(ctx)
    except RequestError as error:
        if not sink.started:
            raise
        log_failure(ctx.request_id, error)
        await sink.fail(error)
    return await sink.finish()


ROUTES = (
    web.post(Api.CHAT.value, chat_completions),
    web.post(Api.COMPLETION.value, completions),
)
