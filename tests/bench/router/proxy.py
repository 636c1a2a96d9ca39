# SPDX-License-Identifier: Apache-2.0
"""A minimal aiohttp pass-through: `python -m tests.bench.router.proxy PORT URL ...`.

What it gets goes to the last URL as it comes, and the answer back as it comes. Any URLs before that are asked
first, with next to nothing.
"""

import asyncio
import sys
from collections.abc import AsyncIterator, Sequence

import aiohttp
from aiohttp import web

from tests.bench.client import JSON
from tests.bench.processes import HOST

SESSION = web.AppKey("session", aiohttp.ClientSession)
_LITTLE = b"{}"
_COPIED = ("Content-Type", "Content-Length")


class Proxy:
    """The handler, for instances at `urls`."""

    def __init__(self, urls: Sequence[str]) -> None:
        self._before, self._last = urls[:-1], urls[-1]

    async def handle(self, request: web.Request) -> web.StreamResponse:
        session = request.app[SESSION]
        for url in self._before:
            async with session.post(url + request.path, data=_LITTLE, headers=JSON) as answer:
                await answer.read()
        headers = {name: request.headers[name] for name in _COPIED}
        async with session.post(self._last + request.path, data=request.content, headers=headers) as answer:
            response = web.StreamResponse(headers={k: answer.headers[k] for k in _COPIED if k in answer.headers})
            await response.prepare(request)
            async for chunk in answer.content.iter_any():
                await response.write(chunk)
            await response.write_eof()
            return response


async def _session(app: web.Application) -> AsyncIterator[None]:
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as app[SESSION]:
        yield


async def main(port: str, *urls: str) -> None:
    app = web.Application(client_max_size=2**30)
    app.router.add_post("/{path:.*}", Proxy(urls).handle)
    app.cleanup_ctx.append(_session)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, HOST, int(port)).start()
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
