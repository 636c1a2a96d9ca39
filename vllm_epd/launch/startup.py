# SPDX-License-Identifier: Apache-2.0
"""Bringing a topology up: the router first, then its instances, then their agreement."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass

import aiohttp

from vllm_epd.launch import probe
from vllm_epd.launch.children import Children, ProcessFailedError
from vllm_epd.launch.plan import InstanceSpec
from vllm_epd.launch.progress import Progress, State

ROUTER = "router"


@dataclass(frozen=True, slots=True)
class RouterSpec:
    """The router that is to run."""

    url: str
    command: Sequence[str]
    environment: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Limits:
    """How long things may take, and how much may happen at once.

    Attributes:
        startup_s: for each process, from its start until it is ready.
        stop_grace_s: from being told to stop until being killed.
        parallel_starts: most instances that start at the same time.
        agreement_s: for the router to find that the registered instances can serve together.
        poll_s: between two questions whether a process is ready.
    """

    startup_s: float
    stop_grace_s: float
    parallel_starts: int
    agreement_s: float = 20.0
    poll_s: float = 0.3


@dataclass(frozen=True, slots=True)
class Blueprint:
    """All that is to run.

    Attributes:
        router: in front.
        instances: behind it.
        command: the command line of an instance.
        text_only: whether no instance encodes, so that the router can never serve every kind of request.
    """

    router: RouterSpec
    instances: Sequence[InstanceSpec]
    command: Callable[[InstanceSpec], list[str]]
    text_only: bool = False


class Startup:
    """One start of a topology. The processes are watched by tasks of `group`, from their start to their end."""

    def __init__(
        self,
        blueprint: Blueprint,
        limits: Limits,
        children: Children,
        progress: Progress,
        group: asyncio.TaskGroup,
        session: aiohttp.ClientSession,
    ) -> None:
        self._blueprint = blueprint
        self._limits = limits
        self._children = children
        self._progress = progress
        self._group = group
        self._session = session
        self._slots = asyncio.Semaphore(limits.parallel_starts)

    async def run(self) -> None:
        """Return when the router can serve.

        Raises:
            ProcessFailedError: a process is not ready in time. One that ends raises it in `group`.
        """
        await self._start_router()
        starts = [self._group.create_task(self._start_instance(spec)) for spec in self._blueprint.instances]
        await asyncio.gather(*starts)
        if not self._blueprint.text_only:
            await self._agree()

    async def _start_router(self) -> None:
        router = self._blueprint.router
        deadline = self._start(ROUTER, router.command, router.environment)
        await self._until(lambda: probe.is_healthy(self._session, router.url), deadline, ROUTER, "it does not answer")
        self._progress.set(ROUTER, State.READY)

    async def _start_instance(self, spec: InstanceSpec) -> None:
        async with self._slots:
            deadline = self._start(spec.name, self._blueprint.command(spec), spec.environment)
            await self._until(
                lambda: probe.is_healthy(self._session, spec.url), deadline, spec.name, "it does not answer"
            )
            self._progress.set(spec.name, State.REGISTERING)
            await self._until(
                lambda: self._is_registered(spec), deadline, spec.name, "it serves, but is not registered"
            )
            self._progress.set(spec.name, State.READY)

    async def _agree(self) -> None:
        """Wait until the router finds that the instances can serve together."""
        url, limit_s = self._blueprint.router.url, self._limits.agreement_s
        deadline = asyncio.get_running_loop().time() + limit_s
        while objection := await probe.router_objection(self._session, url):
            if asyncio.get_running_loop().time() > deadline:
                raise ProcessFailedError(ROUTER, f"all instances are registered, but: {objection}")
            await asyncio.sleep(self._limits.poll_s)

    def _start(self, name: str, command: Sequence[str], environment: Mapping[str, str]) -> float:
        """Start and watch a process; return until when it must be ready."""
        self._children.start(name, command, environment)
        self._group.create_task(self._watch(name))
        self._progress.set(name, State.STARTING)
        return asyncio.get_running_loop().time() + self._limits.startup_s

    async def _watch(self, name: str) -> None:
        try:
            await self._children.watch(name)
        except ProcessFailedError:
            self._progress.set(name, State.FAILED)
            raise

    async def _is_registered(self, spec: InstanceSpec) -> bool:
        return spec.url in await probe.registered_urls(self._session, self._blueprint.router.url)

    async def _until(self, question: Callable[[], Awaitable[bool]], deadline: float, name: str, lacking: str) -> None:
        try:
            async with asyncio.timeout_at(deadline):
                while not await question():
                    await asyncio.sleep(self._limits.poll_s)
        except TimeoutError as error:
            self._progress.set(name, State.FAILED)
            raise ProcessFailedError(name, f"not ready after {self._limits.startup_s:g} s: {lacking}") from error
