# SPDX-License-Identifier: Apache-2.0
"""The router as a web application, and as a process."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable

from aiohttp import web

from vllm_epd.router import api_routes, middleware, registry_routes, status_routes
from vllm_epd.router.client import InstanceClient
from vllm_epd.router.config import RouterConfig
from vllm_epd.router.context import Chooser, Services
from vllm_epd.router.instances import InstanceRegistry
from vllm_epd.router.keys import PIPELINE, SERVICES
from vllm_epd.router.metrics import Metrics
from vllm_epd.router.policies import policy_named
from vllm_epd.router.server import run_until_signal
from vllm_epd.router.steps import build_pipeline


def create_app(config: RouterConfig, clock: Callable[[], float] = time.monotonic) -> web.Application:
    """Build a router that nobody has registered with yet.

    It must be served with handler cancellation, or instances would go on working for clients that left.
    """
    app = web.Application(client_max_size=config.max_body_bytes, middlewares=middleware.CHAIN)
    app[SERVICES] = Services(
        config=config,
        registry=InstanceRegistry(clock, config.ttl_s),
        client=InstanceClient(config.timeouts),
        chooser=Chooser(policy_named(config.policy)),
        metrics=Metrics(),
    )
    app[PIPELINE] = build_pipeline()
    for routes in (api_routes.ROUTES, registry_routes.ROUTES, status_routes.ROUTES):
        app.add_routes(routes)
    app.cleanup_ctx.append(_open_client)
    app.on_response_prepare.append(middleware.add_request_id)
    return app


def serve(config: RouterConfig) -> None:
    """Run a router until SIGTERM or SIGINT; running requests get `config.grace_s` to finish.

    Raises:
        ConfigError: the address cannot be listened on.
    """
    asyncio.run(run_until_signal(create_app(config), config))


async def _open_client(app: web.Application) -> AsyncIterator[None]:
    client = app[SERVICES].client
    await client.start()
    yield
    await client.close()
