# SPDX-License-Identifier: Apache-2.0
"""Clients that read a stream to whatever end it comes to."""

import json
from dataclasses import dataclass, field

from tests.engine import calls
from tests.engine.system import System
from tests.engine.traffic import CHAT, TIMEOUT_S, Json, ask


@dataclass(slots=True)
class Client:
    """A client that reads a stream.

    Attributes:
        tokens: what it has read so far.
        failure: the status or the event that told it of a failure.
        ended: the closing event has come.
    """

    url: str
    request: Json
    tokens: list[str] = field(default_factory=list)
    failure: str = ""
    ended: bool = False

    @property
    def whole(self) -> bool:
        """Whether the stream has ended as it should."""
        return self.ended and not self.failure

    async def read(self) -> None:
        """Read to the end."""
        async with (
            calls.client(timeout=TIMEOUT_S) as http,
            http.stream("POST", self.url + CHAT, json=self.request) as response,
        ):
            if response.status_code != 200:
                self.failure = f"{response.status_code}: {(await response.aread()).decode()}"
                return
            async for line in response.aiter_lines():
                if line.startswith("data: "):
                    self._take(line.removeprefix("data: "))

    def _take(self, data: str) -> None:
        if data == "[DONE]":
            self.ended = True
            return
        chunk = json.loads(data)
        if "error" in chunk:
            self.failure = data
            return
        for choice in chunk["choices"]:
            self.tokens += [entry["token"] for entry in (choice.get("logprobs") or {}).get("content") or ()]


async def are_right(system: System, client: Client) -> None:
    """The tokens are those of a single server."""
    wanted = await ask(system.single, {**client.request, "stream": False})
    assert tuple(client.tokens) == wanted.tokens
