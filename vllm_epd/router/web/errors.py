# SPDX-License-Identifier: Apache-2.0
"""What is wrong with a request as HTTP, whatever it asks for."""

from collections.abc import Iterable

from vllm_epd.errors import RequestError


class NotFoundError(RequestError):
    """404: there is nothing of that name."""

    status = 404
    error_type = "NotFoundError"


class MethodNotAllowedError(RequestError):
    """405: the path takes other methods.

    Attributes:
        allowed: those that it takes.
    """

    status = 405
    error_type = "MethodNotAllowedError"

    def __init__(self, method: str, path: str, allowed: Iterable[str]) -> None:
        self.allowed = ", ".join(sorted(allowed))
        super().__init__(f"{path} does not take {method}; it takes {self.allowed}")


class BodyTooLargeError(RequestError):
    """413: more is sent than is taken."""

    status = 413
    error_type = "RequestTooLargeError"


class MalformedError(RequestError):
    """400: this is no HTTP that a router speaks."""

    status = 400
    error_type = "BadRequestError"


class HeadTooLargeError(RequestError):
    """431: the head of a request is longer than any that means well."""

    status = 431
    error_type = "RequestTooLargeError"
