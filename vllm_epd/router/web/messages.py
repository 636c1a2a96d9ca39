# SPDX-License-Identifier: Apache-2.0
"""Requests as handlers see them, and answers. No I/O."""

from collections.abc import Callable, Mapping
from functools import cached_property, lru_cache
from http import HTTPStatus
from time import time
from typing import Protocol
from urllib.parse import parse_qsl
from wsgiref.handlers import format_date_time

from msgspec import Struct, field
from multidict import CIMultiDict

from vllm_epd.router.web.body import Body

JSON = "application/json"

_STATUS_LINES = {each.value: f"HTTP/1.1 {each.value} {each.phrase}\r\n" for each in HTTPStatus}


class Stream(Protocol):
    """An answer that goes out as it comes.

    Attributes:
        status: of HTTP.
    """

    status: int

    async def write(self, data: bytes) -> None:
        """Send some of it at once; returns when there is room for more.

        Raises:
            ConnectionResetError: the client went away.
        """

    async def end(self) -> None:
        """That was all; fails like `write`."""


#: Begins an answer of status 200 to a request, of a content type and with further headers.
Begin = Callable[["Request", str, Mapping[str, str]], Stream]


class Request:
    """What a client asks, from the moment on that its head is here.

    Attributes:
        method: in capital letters.
        target: path and query as they came.
        headers: of several with one name, a lookup gives the first; names in any case.
        body: what comes after the head.
        http11: whether its client speaks HTTP/1.1; an older one cannot tell a stream's end from a break.
        stays: the connection may carry another request.
        params: what the route has taken out of the path.
    """

    def __init__(
        self,
        method: str,
        target: str,
        headers: CIMultiDict[str],
        body: Body,
        begin: Begin,
        *,
        http11: bool = True,
        stays: bool = True,
    ) -> None:
        self.method = method
        self.target = target
        self.headers = headers
        self.body = body
        self.http11 = http11
        self.stays = stays
        self.params: Mapping[str, str] = {}
        self._begin = begin

    @cached_property
    def path(self) -> str:
        """The path as it came, percent-encoded; that of a URL where the target is one."""
        whole = self.target.partition("?")[0]
        return whole if whole.startswith("/") else "/" + whole.partition("://")[2].partition("/")[2]

    @cached_property
    def query(self) -> Mapping[str, str]:
        """The fields of the query; of several with one name, the last."""
        return dict(parse_qsl(self.target.partition("?")[2], keep_blank_values=True))

    def begin(self, content_type: str, headers: Mapping[str, str]) -> Stream:
        """Begin an answer that goes out as it comes; its head does with the first of it."""
        return self._begin(self, content_type, headers)


class Response(Struct):
    """A whole answer.

    Attributes:
        body: all of it.
        status: of HTTP.
        content_type: of the body.
        headers: all others.
    """

    body: bytes = b""
    status: int = 200
    content_type: str = JSON
    headers: dict[str, str] = field(default_factory=dict)


def head(status: int, *headers: Mapping[str, str]) -> bytes:
    """The head of an answer. Its headers are the router's own: none has a line break in it."""
    lines = "".join([f"{name}: {value}\r\n" for each in headers for name, value in each.items()])
    first = _STATUS_LINES.get(status) or f"HTTP/1.1 {status} \r\n"
    return f"{first}Date: {_date(int(time()))}\r\n{lines}\r\n".encode("utf-8", "surrogateescape")


@lru_cache(maxsize=1)
def _date(second: int) -> str:
    return format_date_time(second)
