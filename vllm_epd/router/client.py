# SPDX-License-Identifier: Apache-2.0
"""HTTP to instances; the one place that knows what goes wrong on the way to them."""

from collections.abc import AsyncIterator, Mapping
from contextlib import AbstractAsyncContextManager
from types import TracebackType
from typing import Self

from vllm_epd.errors import UpstreamError
from vllm_epd.router.alarms import Alarms
from vllm_epd.router.config import Timeouts
from vllm_epd.router.connection import Connection
from vllm_epd.router.connections import Connections
from vllm_epd.router.failures import BrokenOffError, UnreachableError
from vllm_epd.router.inline import Pieces
from vllm_epd.router.instances import Instance
from vllm_epd.types import Role

_SHOWN = 300
#: Statuses of an instance that is overloaded or ends; one that is too slow may have been given too little time.
_UNWELL = frozenset({503})


class InstanceAnswer(AbstractAsyncContextManager["InstanceAnswer"]):
    """The answer of an instance that takes a request: sent on entry, with its body still to come then.

    The connection is given back on exit; how the call ends is told to the instance's breaker.
    """

    def __init__(
        self,
        connections: Connections,
        alarms: Alarms,
        stage: Role,
        instance: Instance,
        path: str,
        pieces: Pieces,
        headers: Mapping[str, str],
        total_s: float,
        *,
        judged: bool,
    ) -> None:
        self._connections = connections
        self._alarms = alarms
        self._stage = stage
        self._instance = instance
        self._total_s = total_s
        self._judged = judged
        self._pieces: Pieces = pieces
        self._address = connections.address(instance.info.url)
        self._head = self._address.head(path, headers, sum(map(len, pieces)))
        self._connection: Connection  # only if connected
        self._connected = False

    @property
    def is_stream(self) -> bool:
        """Whether the body is a stream of events."""
        return _content_type(self._connection) == b"text/event-stream"

    async def read(self) -> bytes:
        """The whole body."""
        try:
            return await self._connection.read()
        except OSError as error:
            raise _told(error, self._stage, self._instance) from error

    async def chunks(self) -> AsyncIterator[bytes]:
        """The body as it arrives."""
        while True:
            try:
                chunk = await self._connection.read_some()
            except OSError as error:
                raise _told(error, self._stage, self._instance) from error
            if not chunk:
                return
            yield chunk

    async def __aenter__(self) -> Self:
        if self._judged:
            self._instance.breaker.tried()
        try:
            self._connection = connection = self._address.take() or await self._connect()
            self._alarms.begin(connection, self._total_s)
            self._connected = True
            # The host of an instance that is gone may not be there to break the connection.
            self._instance.await_answer(connection)
            pieces, self._pieces = self._pieces, ()  # an answer may last much longer than what it needs of the question
            await connection.request(self._head, pieces)
            if connection.status != 200:
                raise await _refusal(connection, self._stage, self._instance)
        except OSError as error:
            told = _told(error, self._stage, self._instance)
            self._end(told)
            raise told from error
        except BaseException as error:
            self._end(error)
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._end(error)

    def _end(self, error: BaseException | None) -> None:
        """Give the connection back and judge the instance; what it answers in good order says nothing against it."""
        if self._connected:
            self._alarms.end(self._connection)
            self._instance.end_answer(self._connection)
            self._connections.release(self._address, self._connection)
        if not self._judged:
            return
        if error is None:
            self._instance.breaker.succeeded()
        elif isinstance(error, (UnreachableError, BrokenOffError)) or getattr(error, "status", None) in _UNWELL:
            self._instance.breaker.failed()

    async def _connect(self) -> Connection:
        try:
            return await self._connections.open(self._address)
        except (OSError, UnicodeError) as error:
            reason = str(error) or type(error).__name__
            message = f"{self._stage} instance {self._instance.name} cannot be reached: {reason}"
            raise UnreachableError(message, stage=self._stage.value, instance=self._instance) from error


class InstanceClient:
    """Sends requests to instances; one per router, until `close`.

    A request that is cancelled closes its connection, by which the instance learns to abort it.
    """

    def __init__(self, timeouts: Timeouts) -> None:
        self._timeouts = timeouts
        self._connections = Connections(timeouts.connect_s)
        self._alarms = Alarms()

    def close(self) -> None:
        """Close all connections that nobody uses."""
        self._alarms.close()
        self._connections.close()

    def post(
        self,
        stage: Role,
        instance: Instance,
        path: str,
        body: bytes | Pieces,
        headers: Mapping[str, str],
        *,
        timeout_s: float | None = None,
        judged: bool = True,
    ) -> AbstractAsyncContextManager[InstanceAnswer]:
        """Send a JSON body, whole or in pieces; the answer is open for the length of the `async with` block.

        It may take `timeout_s`, by default what the stage may take. How a `judged` call ends tells whether the instance
        is well.

        Raises:
            UnreachableError: there is no connection; nothing was sent.
            BrokenOffError: the connection ended before the answer did, or the instance is gone.
            UpstreamError: any other failure, or a status other than 200; status and body come along.
        """
        pieces = (body,) if isinstance(body, bytes) else body
        total_s = self._timeouts.of(stage) if timeout_s is None else timeout_s
        return InstanceAnswer(
            self._connections, self._alarms, stage, instance, path, pieces, headers, total_s, judged=judged
        )

    async def ask(
        self,
        stage: Role,
        instance: Instance,
        path: str,
        body: bytes | Pieces,
        headers: Mapping[str, str],
        *,
        timeout_s: float | None = None,
        judged: bool = True,
    ) -> bytes:
        """Send a JSON body and return the whole answer; limits and failures are those of `post`."""
        async with self.post(stage, instance, path, body, headers, timeout_s=timeout_s, judged=judged) as answer:
            return await answer.read()


async def _refusal(connection: Connection, stage: Role, instance: Instance) -> UpstreamError:
    body = await connection.read()
    is_json = _content_type(connection) == b"application/json"
    shown = body[:_SHOWN].decode(errors="replace")
    error = UpstreamError(
        f"{stage} instance {instance.name} answered {connection.status}: {shown}",
        stage=stage.value,
        status=connection.status if connection.status >= 400 else 502,
        body=body if is_json else None,
    )
    wait = connection.headers.get(b"retry-after", b"")
    error.retry_after_s = int(wait) if wait.isdigit() else None
    return error


def _content_type(connection: Connection) -> bytes:
    return connection.headers.get(b"content-type", b"").partition(b";")[0].strip().lower()


def _told(error: OSError, stage: Role, instance: Instance) -> UpstreamError:
    """What a connection raises, as a leaf of our own tree: the most specific one."""
    who = f"{stage} instance {instance.name}"
    if isinstance(error, TimeoutError):
        return UpstreamError(f"{who} did not answer in time", stage=stage.value, status=504)
    reason = str(error) or type(error).__name__
    return BrokenOffError(f"{who} broke off: {reason}", stage=stage.value)
