# SPDX-License-Identifier: Apache-2.0
"""Leaves that the router adds to the exception tree, and the way from the tree to an HTTP answer."""

from typing import TYPE_CHECKING, Any

from vllm_epd.errors import RequestError, UpstreamError
from vllm_epd.router import jsonio
from vllm_epd.router.web.errors import MethodNotAllowedError
from vllm_epd.router.web.messages import Response

if TYPE_CHECKING:
    from vllm_epd.router.instances import Instance


#: The first status that says that the server, not the request, is at fault.
SERVER_ERROR = 500


class UnknownModelError(RequestError):
    """404: no instance serves the model that the request names."""

    status = 404
    error_type = "NotFoundError"


class UnauthorizedError(RequestError):
    """401: the registration API wants a token that the caller has not shown."""

    status = 401
    error_type = "AuthenticationError"


class QueueFullError(RequestError):
    """429: as many requests wait for a stage as may."""

    status = 429
    error_type = "TooManyRequestsError"


class TooLateError(RequestError):
    """503: the request's own time limit is over, or would be before it is served."""

    status = 503
    error_type = "ServiceUnavailableError"


class UnreachableError(UpstreamError):
    """No connection to an instance: nothing was sent, so another instance may be tried.

    Attributes:
        instance: the one that could not be reached.
    """

    def __init__(self, message: str, *, stage: str, instance: "Instance") -> None:
        super().__init__(message, stage=stage)
        self.instance = instance


class BrokenOffError(UpstreamError):
    """The connection to an instance ended in the middle of an answer: the instance, or the way to it, is gone."""


def error_object(message: str, error_type: str, status: int, param: str | None = None) -> dict[str, Any]:
    """An error as the OpenAI API and vLLM spell it."""
    return {"error": {"message": message, "type": error_type, "param": param, "code": status}}


def error_body(error: RequestError) -> bytes:
    """The JSON that tells a client of `error`: the instance's own where there is one."""
    if isinstance(error, UpstreamError) and error.body is not None:
        return error.body
    return jsonio.encode(error_object(str(error), error.error_type, error.status, error.param))


def error_response(error: RequestError) -> Response:
    """The HTTP answer for `error`."""
    headers = {} if error.retry_after_s is None else {"Retry-After": str(error.retry_after_s)}
    if isinstance(error, MethodNotAllowedError):
        headers["Allow"] = error.allowed
    return Response(error_body(error), error.status, headers=headers)
