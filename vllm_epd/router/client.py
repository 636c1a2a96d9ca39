# SPDX-License-Identifier: Apache-2.0
"""HTTP to instances; the one place that knows aiohttp's client errors."""

import asyncio
import io
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager, nullcontext

import aiohttp

from vllm_epd.errors import UpstreamError
from vllm_epd.router.config import Timeouts
from vllm_epd.router.failures import BrokenOffError, UnreachableError
from vllm_epd.router.instances import Instance
from vllm_epd.types import Role

# Below the 5 s after which vLLM's HTTP server closes an idle connection: one that is being closed must not
# be taken for a new request, which could not be told from a request that got lost.
_KEEP_ALIVE_S = 2.0
_SHOWN = 300
#: Statuses of an instance that is overloaded or ends; one that is too slow may have been given too little time.
_UNWELL = frozenset({503})


class InstanceAnswer:
    """The answer of an instance that took a request, with its body still to come."""

    def __init__(self, response: aiohttp.ClientResponse, stage: Role, instance: Instance) -> None:
        self._response = response
        self._stage = stage
        self._instance = instance

    @property
    def is_stream(self) -> bool:
        """Whether the body is a stream of events."""
        return self._response.content_type == "text/event-stream"

    async def read(self) -> bytes:
        """The whole body."""
        with _mapped_errors(self._stage, self._instance):
            return await self._response.read()

    async def chunks(self) -> AsyncIterator[bytes]:
        """The body as it arrives."""
        while True:
            with _mapped_errors(self._stage, self._instance):
                chunk = await self._response.content.readany()
            if not chunk:
                return
            yield chunk


class InstanceClient:
    """Sends requests to instances; one per router, open between `start` and `close`.

    A request that is cancelled closes its connection, by which the instance learns to abort it.
    """

    def __init__(self, timeouts: Timeouts) -> None:
        self._timeouts = timeouts
        self._session: aiohttp.ClientSession | None = None

    async def start(self) -> None:
        """Open the connection pool; once, in the running event loop."""
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=_KEEP_ALIVE_S),
            cookie_jar=aiohttp.DummyCookieJar(),
            headers={"Accept-Encoding": "identity"},
        )

    async def close(self) -> None:
        """Close all connections."""
        if self._session is not None:
            await self._session.close()

    @asynccontextmanager
    async def post(
        self,
        stage: Role,
        instance: Instance,
        path: str,
        body: bytes,
        headers: Mapping[str, str],
        *,
        timeout_s: float | None = None,
        judged: bool = True,
    ) -> AsyncIterator[InstanceAnswer]:
        """Send a JSON body; the answer is open for the length of the `async with` block.

        It may take `timeout_s`, by default what the stage may take. How a `judged` call ends tells whether the instance
        is well.

        Raises:
            UnreachableError: there is no connection; nothing was sent.
            BrokenOffError: the connection ended before the answer did, or the instance is gone.
            UpstreamError: any other failure, or a status other than 200; status and body come along.
        """
        with _noted(instance) if judged else nullcontext():
            async with (
                _while_there(stage, instance),
                self._posted(stage, instance, path, body, headers, timeout_s) as answer,
            ):
                del body  # an answer may last much longer than what it needs of the question
                yield answer

    @asynccontextmanager
    async def _posted(
        self,
        stage: Role,
        instance: Instance,
        path: str,
        body: bytes,
        headers: Mapping[str, str],
        timeout_s: float | None,
    ) -> AsyncIterator[InstanceAnswer]:
        if self._session is None:
            raise RuntimeError("start() has not been called")
        total_s = self._timeouts.of(stage) if timeout_s is None else timeout_s
        timeout = aiohttp.ClientTimeout(total=total_s, sock_connect=self._timeouts.connect_s)
        with _mapped_errors(stage, instance):
            response = await self._session.post(
                instance.info.url + path,
                data=io.BytesIO(body),
                headers={**headers, "Content-Type": "application/json"},
                timeout=timeout,
                allow_redirects=False,
            )
        del body
        async with response:
            if response.status != 200:
                raise await _refusal(response, stage, instance)
            yield InstanceAnswer(response, stage, instance)

    async def ask(
        self,
        stage: Role,
        instance: Instance,
        path: str,
        body: bytes,
        headers: Mapping[str, str],
        *,
        timeout_s: float | None = None,
        judged: bool = True,
    ) -> bytes:
        """Send a JSON body and return the whole answer; limits and failures are those of `post`."""
        async with self.post(stage, instance, path, body, headers, timeout_s=timeout_s, judged=judged) as answer:
            return await answer.read()


async def _refusal(response: aiohttp.ClientResponse, stage: Role, instance: Instance) -> UpstreamError:
    with _mapped_errors(stage, instance):
        body = await response.read()
    is_json = response.content_type == "application/json"
    shown = body[:_SHOWN].decode(errors="replace")
    error = UpstreamError(
        f"{stage} instance {instance.name} answered {response.status}: {shown}",
        stage=stage.value,
        status=response.status if response.status >= 400 else 502,
        body=body if is_json else None,
    )
    wait = response.headers.get("Retry-After", "")
    error.retry_after_s = int(wait) if wait.isdecimal() else None
    return error


@contextmanager
def _noted(instance: Instance) -> Iterator[None]:
    """Tell the breaker of an instance how a call has ended; what it answers in good order says nothing against it."""
    instance.breaker.tried()
    try:
        yield
    except UpstreamError as error:
        if isinstance(error, (UnreachableError, BrokenOffError)) or error.status in _UNWELL:
            instance.breaker.failed()
        raise
    instance.breaker.succeeded()


@asynccontextmanager
async def _while_there(stage: Role, instance: Instance) -> AsyncIterator[None]:
    """End a `with` block as soon as the instance is known to be gone: its host may not be there to say so."""
    loop = asyncio.get_running_loop()
    limit = asyncio.timeout(None)
    try:
        async with limit:
            with instance.awaited(lambda: limit.reschedule(loop.time())):
                yield
    except TimeoutError as error:
        if not limit.expired():
            raise
        raise BrokenOffError(f"{stage} instance {instance.name} is gone", stage=stage.value) from error


@contextmanager
def _mapped_errors(stage: Role, instance: Instance) -> Iterator[None]:
    """Turn what aiohttp raises into our own tree, the most specific first."""
    who = f"{stage} instance {instance.name}"
    try:
        yield
    except (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError) as error:
        raise UnreachableError(f"{who} cannot be reached: {error}", stage=stage.value, instance=instance) from error
    except TimeoutError as error:
        raise UpstreamError(f"{who} did not answer in time", stage=stage.value, status=504) from error
    except (aiohttp.ClientError, OSError) as error:
        reason = str(error) or type(error).__name__
        raise BrokenOffError(f"{who} broke off: {reason}", stage=stage.value) from error
