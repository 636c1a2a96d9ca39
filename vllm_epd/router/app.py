# SPDX-License-Identifier: Apache-2.0
"""The router as a web application, and as a process."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import replace

import uvloop
from aiohttp import web

from vllm_epd.router import api_routes, middleware, registry_routes, status_routes
from vllm_epd.router.access import open_access_log
from vllm_epd.router.client import InstanceClient
from vllm_epd.router.config import RouterConfig
from vllm_epd.router.context import Services
from vllm_epd.router.encoders import Encoders
from vllm_epd.router.instances import InstanceRegistry
from vllm_epd.router.keys import PEERS, PIPELINE, SERVICES, SIBLINGS, WORKER
from vllm_epd.router.leases import LeaseClient
from vllm_epd.router.metrics import Metrics
from vllm_epd.router.offers import KvClient
from vllm_epd.router.peers import PeerTable
from vllm_epd.router.recovery import Recovery
from vllm_epd.router.scheduling import Scheduling
from vllm_epd.router.server import announce, cannot_listen, run_as_worker, run_until_signal, show_messages
from vllm_epd.router.status_routes import own_metrics
from vllm_epd.router.steps import build_pipeline
from vllm_epd.router.workers.sibling_routes import among_siblings
from vllm_epd.router.workers.siblings import Siblings
from vllm_epd.router.workers.supervisor import Supervisor, hold_port
from vllm_epd.router.workers.worker import Worker
from vllm_epd.types import Role

#: How often silent instances are looked for on behalf of those who wait for a change.
_SWEEP_S = 1.0


def create_app(
    config: RouterConfig, clock: Callable[[], float] = time.monotonic, worker: Worker | None = None
) -> web.Application:
    """Build a router that nobody has registered with yet; or one process of a router, if it has several.

    It must be served with handler cancellation, or instances would go on working for clients that left.
    """
    app = web.Application(client_max_size=config.max_body_bytes, middlewares=middleware.CHAIN)
    registry = InstanceRegistry(clock, config.ttl_s, shares=1 if worker is None else worker.count)
    client = InstanceClient(config.timeouts)
    scheduling = Scheduling.of(config, clock)
    app[SERVICES] = Services(
        config=config,
        registry=registry,
        client=client,
        scheduling=scheduling,
        metrics=Metrics(),
        encoders=Encoders(LeaseClient(client, config), config.reuse_entries, scheduling.queues[Role.ENCODE]),
        kv=KvClient(client, config),
        recovery=Recovery(config.retries, config.recovery_bytes, clock),
    )
    app[PEERS] = PeerTable(registry, None if worker is None else worker.run)
    app[SIBLINGS] = Siblings(worker)
    app[WORKER] = worker
    app[PIPELINE] = build_pipeline()
    scheduling.watch(registry)
    registry.watch(lambda: app[SERVICES].recovery.pairs.keep(registry.listed().__contains__))
    for routes in (api_routes.ROUTES, registry_routes.ROUTES, status_routes.ROUTES):
        app.add_routes(routes)
    app.cleanup_ctx.extend((_close_client, _sweep, _among_siblings))
    app.on_shutdown.append(_answer_polls)
    app.on_response_prepare.append(middleware.add_headers)
    return app


def serve(config: RouterConfig) -> None:
    """Run a router until SIGTERM or SIGINT; running requests get `config.grace_s` to finish.

    Raises:
        ConfigError: the address cannot be listened on, or the access log cannot be written.
    """
    open_access_log(config.access_log)
    if config.workers == 1:
        uvloop.run(run_until_signal(create_app(config), config))
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
        uvloop.run(run_as_worker(create_app(config, worker=worker), config, parent, ready))

    Supervisor(config.workers, serve_one).run(lambda: announce(config, config.port))


async def _close_client(app: web.Application) -> AsyncIterator[None]:
    services = app[SERVICES]
    yield
    await services.encoders.leases.close()
    await services.kv.close()
    services.client.close()


async def _sweep(app: web.Application) -> AsyncIterator[None]:
    async def sweep() -> None:
        while True:
            await asyncio.sleep(_SWEEP_S)
            app[SERVICES].registry.sweep()

    task = asyncio.create_task(sweep())
    yield
    task.cancel()


async def _among_siblings(app: web.Application) -> AsyncIterator[None]:
    worker = app[WORKER]
    if worker is None:
        yield
        return
    async for _ in among_siblings(worker, app[SIBLINGS], app[SERVICES].registry, lambda: own_metrics(app)):
        yield


async def _answer_polls(app: web.Application) -> None:
    app[PEERS].close()
