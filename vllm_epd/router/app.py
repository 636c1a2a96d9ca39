# SPDX-License-Identifier: Apache-2.0
"""The router: all its parts put together, and as a process."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace

import uvloop

from vllm_epd.router import api_routes, registry_routes, status_routes
from vllm_epd.router.access import open_access_log
from vllm_epd.router.client import InstanceClient
from vllm_epd.router.config import RouterConfig
from vllm_epd.router.context import Services
from vllm_epd.router.encoders import Encoders
from vllm_epd.router.failures import error_response
from vllm_epd.router.front import Front
from vllm_epd.router.instances import InstanceRegistry
from vllm_epd.router.leases import LeaseClient
from vllm_epd.router.metrics import Metrics
from vllm_epd.router.offers import KvClient
from vllm_epd.router.parts import Parts
from vllm_epd.router.peers import PeerTable
from vllm_epd.router.recovery import Recovery
from vllm_epd.router.scheduling import Scheduling
from vllm_epd.router.server import announce, cannot_listen, run_as_worker, run_until_signal, show_messages
from vllm_epd.router.status_routes import own_metrics
from vllm_epd.router.steps import build_pipeline
from vllm_epd.router.web.routes import Routes
from vllm_epd.router.web.server import HttpServer
from vllm_epd.router.workers.sibling_routes import among_siblings
from vllm_epd.router.workers.siblings import Siblings
from vllm_epd.router.workers.supervisor import Supervisor, hold_port
from vllm_epd.router.workers.worker import Worker
from vllm_epd.types import Role

#: How often silent instances are looked for on behalf of those who wait for a change.
_SWEEP_S = 1.0


class Router:
    """A router that nobody has registered with yet; or one process of a router, if it has several.

    Attributes:
        parts: what its handlers work with.
    """

    def __init__(
        self, config: RouterConfig, clock: Callable[[], float] = time.monotonic, worker: Worker | None = None
    ) -> None:
        registry = InstanceRegistry(clock, config.ttl_s, shares=1 if worker is None else worker.count)
        services = _services(config, registry, clock)
        self.parts = Parts(
            services=services,
            pipeline=build_pipeline(),
            peers=PeerTable(registry, None if worker is None else worker.run),
            siblings=Siblings(worker),
            worker=worker,
        )
        services.scheduling.watch(registry)
        registry.watch(lambda: services.recovery.pairs.keep(registry.listed().__contains__))
        routes = (each for of in (api_routes, registry_routes, status_routes) for each in of.routes(self.parts))
        front = Front(self.parts, Routes(routes))
        self._server = HttpServer(front.serve, error_response, config.max_body_bytes)

    @asynccontextmanager
    async def running(self, host: str, port: int, *, shared: bool = False) -> AsyncIterator[int]:
        """Serve at an address, which other processes may share, and give the port.

        At the end it takes nothing new, and running requests get `grace_s` of its configuration to finish.

        Raises:
            OSError: the address cannot be listened on.
        """
        async with _closing(self.parts.services), _sweeping(self.parts.services.registry), _among_siblings(self.parts):
            found = await self._server.listen(host, port, shared=shared)
            try:
                yield found
            finally:
                self.parts.peers.close()
                await self._server.close(self.parts.services.config.grace_s)


def serve(config: RouterConfig) -> None:
    """Run a router until SIGTERM or SIGINT; running requests get `config.grace_s` to finish.

    Raises:
        ConfigError: the address cannot be listened on, or the access log cannot be written.
    """
    open_access_log(config.access_log)
    if config.workers == 1:
        uvloop.run(run_until_signal(Router(config), config))
        return
    show_messages()
    try:
        held = hold_port(config.host, config.port)
    except OSError as error:
        raise cannot_listen(config, error) from error
    with held:
        _serve_together(replace(config, port=held.getsockname()[1]))


def _serve_together(config: RouterConfig) -> None:
    def serve_one(worker: Worker, parent: int, ready: Callable[[], None]) -> None:
        uvloop.run(run_as_worker(Router(config, worker=worker), config, parent, ready))

    Supervisor(config.workers, serve_one).run(lambda: announce(config, config.port))


def _services(config: RouterConfig, registry: InstanceRegistry, clock: Callable[[], float]) -> Services:
    client = InstanceClient(config.timeouts)
    scheduling = Scheduling.of(config, clock)
    return Services(
        config=config,
        registry=registry,
        client=client,
        scheduling=scheduling,
        metrics=Metrics(),
        encoders=Encoders(LeaseClient(client, config), config.reuse_entries, scheduling.queues[Role.ENCODE]),
        kv=KvClient(client, config),
        recovery=Recovery(config.retries, config.recovery_bytes, clock),
    )


@asynccontextmanager
async def _closing(services: Services) -> AsyncIterator[None]:
    try:
        yield
    finally:
        await services.encoders.leases.close()
        await services.kv.close()
        services.client.close()


@asynccontextmanager
async def _sweeping(registry: InstanceRegistry) -> AsyncIterator[None]:
    async def sweep() -> None:
        while True:
            await asyncio.sleep(_SWEEP_S)
            registry.sweep()

    task = asyncio.create_task(sweep())
    try:
        yield
    finally:
        task.cancel()


@asynccontextmanager
async def _among_siblings(parts: Parts) -> AsyncIterator[None]:
    if parts.worker is None:
        yield
        return
    services = parts.services
    async with among_siblings(parts.worker, parts.siblings, services.registry, lambda: own_metrics(services)):
        yield
