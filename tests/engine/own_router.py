# SPDX-License-Identifier: Apache-2.0
"""A router in the test's own process, in front of any choice of running instances."""

from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from typing import Any

from tests.engine import calls
from tests.engine.traffic import Json
from vllm_epd.router.app import Router
from vllm_epd.router.config import RouterConfig

FOREVER_S = 3600.0


@asynccontextmanager
async def own_router(infos: Iterable[Json], **settings: Any) -> AsyncIterator[str]:
    """The URL of a router that knows these instances; they report to another one and are kept all the same.

    `settings` are those of the router that are not to be its defaults.
    """
    router = Router(RouterConfig(ttl_s=FOREVER_S, token=None, grace_s=1.0, **settings))
    async with router.running("127.0.0.1", 0) as port:
        url = f"http://127.0.0.1:{port}"
        async with calls.client() as client:
            for info in infos:
                response = await client.post(f"{url}/epd/instances", json=info)
                assert response.status_code == 200, response.text
        yield url


async def described(instance: str, **changes: str) -> Json:
    """What an instance says of itself, with `changes`."""
    async with calls.client() as client:
        response = await client.get(f"{instance}/epd/info")
    assert response.status_code == 200, response.text
    return {**response.json(), **changes}
