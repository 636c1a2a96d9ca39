# SPDX-License-Identifier: Apache-2.0
"""What a worker answers the other workers, on a Unix socket that this user alone can reach."""

from collections.abc import AsyncIterator, Callable

from aiohttp import web

from vllm_epd.router import jsonio
from vllm_epd.router.instances import InstanceRegistry
from vllm_epd.router.workers.siblings import INSTANCES, METRICS, Siblings
from vllm_epd.router.workers.worker import Worker
from vllm_epd.types import InstanceInfo


class SiblingRoutes:
    """The handlers over one worker's registry and numbers."""

    def __init__(self, registry: InstanceRegistry, render: Callable[[], bytes]) -> None:
        self._registry = registry
        self._render = render

    def app(self) -> web.Application:
        """The application that serves them."""
        app = web.Application()
        app.router.add_post(INSTANCES, self._lives)
        app.router.add_get(INSTANCES, self._list)
        app.router.add_delete(INSTANCES + "/{instance_id}", self._left)
        app.router.add_get(METRICS, self._metrics)
        return app

    async def _lives(self, request: web.Request) -> web.Response:
        self._registry.register(InstanceInfo.from_mapping(jsonio.decode(await request.read())))
        return web.Response(status=204)

    async def _left(self, request: web.Request) -> web.Response:
        self._registry.remove(request.match_info["instance_id"], request.query["epoch"])
        return web.Response(status=204)

    async def _list(self, request: web.Request) -> web.Response:
        infos = [each.info.to_mapping() for each in self._registry.listed()]
        return web.Response(body=jsonio.encode(infos), content_type="application/json")

    async def _metrics(self, request: web.Request) -> web.Response:
        return web.Response(body=self._render())


async def among_siblings(
    worker: Worker, siblings: Siblings, registry: InstanceRegistry, render: Callable[[], bytes]
) -> AsyncIterator[None]:
    """Be reachable for the others, then learn from them who is there: nothing that happens meanwhile is missed."""
    runner = web.AppRunner(SiblingRoutes(registry, render).app(), access_log=None)
    await runner.setup()
    worker.socket.unlink(missing_ok=True)
    await web.UnixSite(runner, str(worker.socket)).start()
    await siblings.start()
    for info in await siblings.instances():
        registry.register(info)
    yield
    await siblings.close()
    await runner.cleanup()
