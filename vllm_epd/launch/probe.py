# SPDX-License-Identifier: Apache-2.0
"""Whether the processes of a topology are ready: questions over HTTP, answered by no while nobody listens."""

import json
from collections.abc import Mapping

import aiohttp

from vllm_epd.launch.children import ProcessFailedError
from vllm_epd.types import TOKEN_ENV

TIMEOUT = aiohttp.ClientTimeout(total=5.0)
UNREACHABLE = (aiohttp.ClientError, TimeoutError)
SHOWN = 500
"""Characters of an unexpected answer."""


def open_session(environment: Mapping[str, str]) -> aiohttp.ClientSession:
    """A session that shows the router's token, if there is one."""
    token = environment.get(TOKEN_ENV)
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    return aiohttp.ClientSession(timeout=TIMEOUT, headers=headers)


async def is_healthy(session: aiohttp.ClientSession, url: str) -> bool:
    """Whether the server at this base URL says that it works."""
    return await _status(session, f"{url}/health") == 200


async def registered_urls(session: aiohttp.ClientSession, router: str) -> frozenset[str]:
    """Base URLs of the instances that the router knows.

    Raises:
        ProcessFailedError: the router answers, but not with its instances.
    """
    try:
        async with session.get(f"{router}/epd/instances") as response:
            status, body = response.status, await response.text()
    except UNREACHABLE:
        return frozenset()
    try:
        return frozenset(str(each["url"]) for each in json.loads(body)["instances"])
    except (ValueError, KeyError, TypeError) as error:
        raise ProcessFailedError(
            "router", f"does not list its instances, but answers {status}: {body[:SHOWN]}"
        ) from error


async def router_objection(session: aiohttp.ClientSession, router: str) -> str | None:
    """What the router misses before it can serve every request; None when nothing."""
    try:
        async with session.get(f"{router}/ready") as response:
            return None if response.status == 200 else _error_message(response.status, await response.text())
    except UNREACHABLE as error:
        return f"no answer from the router: {error!r}"


async def _status(session: aiohttp.ClientSession, url: str) -> int | None:
    try:
        async with session.get(url) as response:
            return response.status
    except UNREACHABLE:
        return None


def _error_message(status: int, body: str) -> str:
    """What an OpenAI error object says; the bare answer where it is none."""
    try:
        return str(json.loads(body)["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return f"{status} {body[:SHOWN]}"
