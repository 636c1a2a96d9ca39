# SPDX-License-Identifier: Apache-2.0
"""What a worker answers the other workers, on a Unix socket that this user alone can reach."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from vllm_epd.errors import RequestError
from vllm_epd.router import jsonio
from vllm_epd.router.failures import error_response
from vllm_epd.router.instances import InstanceRegistry
from vllm_epd.router.web.messages import Request, Response
from vllm_epd.router.web.routes import Answer, Route, Routes
from vllm_epd.router.web.server import HttpServer
from vllm_epd.router.workers.siblings import INSTANCES, METRICS, Siblings
from vllm_epd.router.workers.worker import Worker
from vllm_epd.types import InstanceInfo

#: Far more than an instance says of itself.
_MOST_BODY = 2**20


class SiblingRoutes:
    """The handlers over one worker's registry and numbers."""

    def __init__(self, registry: InstanceRegistry, render: Callable[[], bytes]) -> None:
        self._registry = registry
        self._render = render
        self._routes = Routes(
            (
                Route("POST", INSTANCES, self._lives),
                Route("GET", INSTANCES, self._list),
                Route("DELETE", INSTANCES + "/{instance_id}", self._left),
                Route("GET", METRICS, self._metrics),
            )
        )

    async def serve(self, request: Request) -> Answer:
        """Answer another worker."""
        try:
            return await self._routes.handler(request)(request)
        except RequestError as error:
            return error_response(error)

    async def _lives(self, request: Request) -> Response:
        self._registry.register(InstanceInfo.from_mapping(jsonio.decode(await request.body.read())))
        return Response(status=204)

    async def _left(self, request: Request) -> Response:
        self._registry.remove(request.params["instance_id"], request.query["epoch"])
        return Response(status=204)

    async def _list(self, _: Request) -> Response:
        return jsonio.answer([each.info.to_mapping() for each in self._registry.listed()])

    async def _metrics(self, _: Request) -> Response:
        return Response(self._render(), content_type="text/plain")


@asynccontextmanager
async def among_siblings(
    worker: Worker, siblings: Siblings, registry: InstanceRegistry, render: Callable[[], bytes]
) -> AsyncIterator[None]:
    """Be reachable for the others, then learn from them who is there: nothing that happens meanwhile is missed."""
    server = HttpServer(SiblingRoutes(registry, render).serve, error_response, _MOST_BODY)
    worker.socket.unlink(missing_ok=True)
    await server.listen_at(worker.socket)
    try:
        await siblings.start()
        for info in await siblings.instances():
            registry.register(info)
        yield
    finally:
        await siblings.close()
        await server.close(0.0)
