# SPDX-License-Identifier: Apache-2.0
"""Around every request: its id, its numbers, the token of the registration API, and errors as OpenAI's."""

import asyncio
import hmac
import logging

from vllm_epd.errors import RequestError
from vllm_epd.router import access, jsonio
from vllm_epd.router.failures import UnauthorizedError, error_object, error_response
from vllm_epd.router.names import fresh_name
from vllm_epd.router.parts import Parts
from vllm_epd.router.pipeline import log_failure
from vllm_epd.router.record import CLIENT_GONE, RECORD, REQUEST_ID_HEADER, Record
from vllm_epd.router.timeline import Timeline
from vllm_epd.router.web.messages import Request, Response
from vllm_epd.router.web.routes import Answer, Routes

logger = logging.getLogger(__name__)

#: What instances ask, not clients.
_OWN = "/epd/"


class Front:
    """Has each request answered by its route, and what fails by an error."""

    def __init__(self, parts: Parts, routes: Routes) -> None:
        self._metrics = parts.services.metrics
        self._clock = parts.services.scheduling.clock
        self._token = parts.services.config.token
        self._routes = routes

    async def serve(self, request: Request) -> Answer:
        """Answer, under the client's request id or one of our own; count it by route and status."""
        named = request.headers.get(REQUEST_ID_HEADER, "")
        record = Record(named if named and named.isprintable() else fresh_name(), Timeline(self._clock))
        RECORD.set(record)
        resource = self._routes.find(request.path)
        status = CLIENT_GONE
        polls = request.path.startswith(_OWN)  # instances wait for each other all the time; that is no load
        if not polls:
            self._metrics.came()
        try:
            answer = await self._answer(request, record)
            status = answer.status
        except (asyncio.CancelledError, ConnectionResetError):
            logger.info("request %s: the client went away", record.request_id)
            raise
        finally:
            self._metrics.answered("other" if resource is None else resource.path, status)
            if not polls:
                self._metrics.went()
            if record.api is not None:
                self._metrics.ended(record, status)
                access.write(record, status)
        if isinstance(answer, Response):
            answer.headers.update(record.headers())
        return answer

    async def _answer(self, request: Request, record: Record) -> Answer:
        try:
            handler = self._routes.handler(request)
            self._authorize(request)
            return await handler(request)
        except RequestError as error:
            record.fail(error)
            log_failure(record.request_id, error)
            return error_response(error)
        except ConnectionResetError:
            raise
        except Exception as error:
            record.fail(error)
            logger.exception("request %s met a bug of the router", record.request_id)
            body = error_object("the router failed; its log says why", "InternalServerError", 500)
            return jsonio.answer(body, 500)

    def _authorize(self, request: Request) -> None:
        """Let only those who know the token, if there is one, tell the router about instances."""
        if self._token is not None and request.path.startswith(_OWN):
            shown = request.headers.get("Authorization", "")
            if not hmac.compare_digest(shown.encode(errors="surrogateescape"), f"Bearer {self._token}".encode()):
                raise UnauthorizedError("the registration API needs the router's token as a bearer token")
