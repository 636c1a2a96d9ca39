# SPDX-License-Identifier: Apache-2.0
"""Around every request: its id, its numbers, the token of the registration API, and errors as OpenAI's."""

import asyncio
import hmac
import logging
from collections.abc import Awaitable, Callable

from aiohttp import web

from vllm_epd.errors import RequestError
from vllm_epd.router import access, jsonio
from vllm_epd.router.failures import UnauthorizedError, error_object, error_response
from vllm_epd.router.keys import SERVICES
from vllm_epd.router.names import fresh_name
from vllm_epd.router.pipeline import log_failure
from vllm_epd.router.record import CLIENT_GONE, RECORD, REQUEST_ID_HEADER, Record
from vllm_epd.router.timeline import Timeline, server_timing

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

logger = logging.getLogger(__name__)

#: What instances ask, not clients.
_OWN = "/epd/"
_TYPES = {404: "NotFoundError", 405: "MethodNotAllowedError", 413: "RequestTooLargeError"}


@web.middleware
async def identify(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Keep the client's request id, or make one; what is noted of the request begins here."""
    found = request.headers.get(REQUEST_ID_HEADER) or fresh_name()
    RECORD.set(Record(found, Timeline(request.app[SERVICES].scheduling.clock)))
    return await handler(request)


async def add_headers(request: web.Request, response: web.StreamResponse) -> None:
    """Return the request id, and what the time until now went to; in streams and with errors too."""
    record = RECORD.get()
    response.headers[REQUEST_ID_HEADER] = record.request_id
    if record.api is not None:
        response.headers["Server-Timing"] = server_timing(record.timeline)


@web.middleware
async def count(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Count requests by route and status, and tell the log of those for an answer how they went."""
    record, metrics = RECORD.get(), request.app[SERVICES].metrics
    resource = request.match_info.route.resource
    route = resource.canonical if resource is not None else "other"
    status = CLIENT_GONE
    polls = request.path.startswith(_OWN)  # instances wait for each other all the time; that is no load
    if not polls:
        metrics.came()
    try:
        response = await handler(request)
        status = response.status
    except (asyncio.CancelledError, ConnectionResetError):
        logger.info("request %s: the client went away", record.request_id)
        raise
    finally:
        metrics.answered(route, status)
        if record.api is not None:
            metrics.ended(record, status)
            access.write(record, status)
        if not polls:
            metrics.went()
    return response


@web.middleware
async def spell_errors(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Answer every failure with an error object of the OpenAI API."""
    try:
        return await handler(request)
    except RequestError as error:
        RECORD.get().fail(error)
        log_failure(RECORD.get().request_id, error)
        return error_response(error)
    except web.HTTPException as error:
        RECORD.get().fail(error)
        return _as_json(error)
    except ConnectionResetError:
        raise
    except Exception as error:
        RECORD.get().fail(error)
        logger.exception("request %s met a bug of the router", RECORD.get().request_id)
        body = error_object("the router failed; its log says why", "InternalServerError", 500)
        return web.Response(body=jsonio.encode(body), status=500, content_type="application/json")


@web.middleware
async def authorize(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Let only those who know the token, if there is one, tell the router about instances."""
    token = request.app[SERVICES].config.token
    if token is not None and request.path.startswith(_OWN):
        shown = request.headers.get("Authorization", "")
        if not hmac.compare_digest(shown.encode(), f"Bearer {token}".encode()):
            raise UnauthorizedError("the registration API needs the router's token as a bearer token")
    return await handler(request)


def _as_json(error: web.HTTPException) -> web.Response:
    body = error_object(error.text or error.reason, _TYPES.get(error.status, "BadRequestError"), error.status)
    headers = {"Allow": error.headers["Allow"]} if "Allow" in error.headers else {}
    return web.Response(body=jsonio.encode(body), status=error.status, content_type="application/json", headers=headers)


CHAIN = (identify, count, spell_errors, authorize)
