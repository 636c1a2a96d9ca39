# SPDX-License-Identifier: Apache-2.0
"""Which handler answers a request. Pure."""

from collections.abc import Awaitable, Callable, Iterable, Mapping
from urllib.parse import unquote

from msgspec import Struct

from vllm_epd.router.web.errors import MethodNotAllowedError, NotFoundError
from vllm_epd.router.web.messages import Request, Response, Stream

Answer = Response | Stream
Handler = Callable[[Request], Awaitable[Answer]]


class Route(Struct, frozen=True):
    """One method of one path.

    Attributes:
        method: in capital letters; what answers GET answers HEAD too.
        path: as it is written, or with a name in braces for its last part.
        handler: what answers.
    """

    method: str
    path: str
    handler: Handler


class Resource(Struct, frozen=True):
    """One path.

    Attributes:
        path: as in its routes.
        handlers: by method.
        name: that of its last part, empty if that is fixed.
    """

    path: str
    handlers: dict[str, Handler]
    name: str = ""

    def handler(self, request: Request) -> Handler:
        """What answers the request, whose parameters are noted in it.

        Raises:
            MethodNotAllowedError: nothing.
        """
        found = self.handlers.get(request.method)
        if found is None:
            raise MethodNotAllowedError(request.method, request.path, self.handlers)
        if self.name:
            request.params = {self.name: unquote(request.path.rpartition("/")[2])}
        return found


class Routes:
    """All routes of a server."""

    def __init__(self, routes: Iterable[Route]) -> None:
        by_path: dict[str, dict[str, Handler]] = {}
        for each in routes:
            by_path.setdefault(each.path, {})[each.method] = each.handler
        for handlers in by_path.values():
            if "GET" in handlers:
                handlers["HEAD"] = handlers["GET"]
        resources = [Resource(path, handlers, _name(path)) for path, handlers in by_path.items()]
        self._fixed: Mapping[str, Resource] = {each.path: each for each in resources if not each.name}
        self._named: Mapping[str, Resource] = {each.path.rpartition("/")[0]: each for each in resources if each.name}

    def find(self, path: str) -> Resource | None:
        """What is at a path, percent-encoded as it came."""
        return self._fixed.get(path) or self._named.get(path.rpartition("/")[0])

    def handler(self, request: Request) -> Handler:
        """What answers a request; see `Resource.handler`.

        Raises:
            NotFoundError: there is nothing at its path.
            MethodNotAllowedError: not for its method.
        """
        resource = self.find(request.path)
        if resource is None:
            raise NotFoundError(f"there is nothing at {request.path}")
        return resource.handler(request)


def _name(path: str) -> str:
    last = path.rpartition("/")[2]
    return last[1:-1] if last.startswith("{") else ""
