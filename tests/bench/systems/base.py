# SPDX-License-Identifier: Apache-2.0
"""What the benchmark needs of a system."""

from collections.abc import Mapping
from contextlib import AbstractAsyncContextManager
from typing import Protocol

from tests.bench.cases import ChatRequest
from tests.bench.client import Answer
from tests.bench.processes import Place


class Running(Protocol):
    """A system that is up.

    Attributes:
        urls: base URLs of its servers by name.
    """

    urls: Mapping[str, str]

    async def send(self, request: ChatRequest) -> Answer:
        """Serve one request; several may be under way at once."""

    async def stage_seconds(self) -> Mapping[str, float]:
        """Seconds that all requests so far have spent in each stage; empty where there are no stages."""


class System(Protocol):
    """A way of serving the model."""

    name: str

    def start(self, place: Place) -> AbstractAsyncContextManager[Running]:
        """Bring it up, and stop it when the context closes."""
