# SPDX-License-Identifier: Apache-2.0
"""Whether the processes of a topology are ready: questions over HTTP, answered by no while nobody listens."""

from collections.abc import Mapping
from typing import Any

import aiohttp

TIMEOUT = aiohttp.ClientTimeout(total=5.0)
FAILURES = (aiohttp.ClientError, TimeoutError, ValueError, KeyError, TypeError)
TOKEN_VARIABLE = "EPD_TOKEN"
"""Holds the secret of the router's registration API; the router reads it too."""


def open_session(environment: Mapping[str, str]) -> aiohttp.ClientSession:
    """A session that shows the router's token, if there is one."""
    token = environment.get(TOKEN_VARIABLE)
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    return aiohttp.ClientSession(timeout=TIMEOUT, headers=headers)


async def is_healthy(session: aiohttp.ClientSession, url: str) -> bool:
    """Whether the server at this base URL says that it works."""
    return await _status(session, f"{url}/health") == 200


async def registered_urls(session: aiohttp.ClientSession, router: str) -> frozenset[str]:
    """Base URLs of the instances that the router knows."""
    try:
        async with session.get(f"{router}/epd/instances") as response:
            listed = (await response.json())["instances"]
            return frozenset(str(each["url"]) for each in listed)
    except FAILURES:
        return frozenset()


async def router_objection(session: aiohttp.ClientSession, router: str) -> str | None:
    """What the router misses before it can serve every request; None when nothing."""
    try:
        async with session.get(f"{router}/ready") as response:
            if response.status == 200:
                return None
            body: Any = await response.json()
            return str(body["error"]["message"])
    except FAILURES as error:
        return f"no answer from the router: {error!r}"


async def _status(session: aiohttp.ClientSession, url: str) -> int | None:
    try:
        async with session.get(url) as response:
            return response.status
    except FAILURES:
        return None
