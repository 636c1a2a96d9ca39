# SPDX-License-Identifier: Apache-2.0
"""What a start waits for, with servers in this process beside commands that only sleep."""

import asyncio
import io
import itertools

import pytest
from aiohttp import ClientSession, web
from aiohttp.test_utils import TestServer
from rich.console import Console

from vllm_epd.launch.children import Children, ProcessFailedError
from vllm_epd.launch.plan import InstanceSpec
from vllm_epd.launch.progress import Progress
from vllm_epd.launch.startup import Blueprint, Limits, RouterSpec, Startup
from vllm_epd.types import RoleSet

SLEEP = ["sleep", "300"]
LIMITS = Limits(startup_s=1.0, stop_grace_s=1.0, parallel_starts=4, agreement_s=0.5, poll_s=0.02)


class World:
    """A router and an instance; each of their answers can be changed."""

    def __init__(self):
        self.health = 200
        self.instances = 200
        self.listed = True
        self.ready = (200, {})
        self.output = io.StringIO()

    def app(self):
        app = web.Application()
        app.router.add_get("/health", self._health)
        app.router.add_get("/epd/instances", self._instances)
        app.router.add_get("/ready", self._ready)
        return app

    async def _health(self, request):
        return web.Response(status=self.health)

    async def _instances(self, request):
        url = f"http://{request.host}" if self.listed else "http://127.0.0.1:9"
        return web.json_response({"instances": [{"url": url}]} if self.instances == 200 else {}, status=self.instances)

    async def _ready(self, request):
        status, body = self.ready
        return web.json_response(body, status=status)


@pytest.fixture
async def world(tmp_path, marked):
    world = World()
    children = Children(tmp_path, 1.0)
    # The instance is reached as the router is, so one server plays both.
    async with TestServer(world.app(), host="127.0.0.1") as server, ClientSession() as session:

        async def start(text_only=False):
            spec = InstanceSpec("D0", RoleSet.parse("decode"), server.port, (), marked.environment)
            router = RouterSpec(f"http://127.0.0.1:{server.port}", SLEEP, marked.environment)
            blueprint = Blueprint(router, [spec], lambda _: SLEEP, text_only)
            clock = itertools.count().__next__
            progress = Progress(Console(file=world.output), clock, {"router": "", "D0": "decode"})
            async with asyncio.TaskGroup() as group:
                await Startup(blueprint, LIMITS, children, progress, group, session).run()
                raise EnoughError

        world.start = start
        yield world
        await children.stop()


class EnoughError(Exception):
    """The start succeeded; ends the watching."""


def only(group):
    """The one failure of a start."""
    assert {str(error) for error in group.exceptions} == {str(group.exceptions[0])}
    return str(group.exceptions[0])


async def test_start_ends_when_all_is_ready(world):
    with pytest.raises(ExceptionGroup) as found:
        await world.start()
    assert isinstance(found.value.exceptions[0], EnoughError)
    assert world.output.getvalue().count("ready") == 2


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"health": 503}, "router: not ready after 1 s: it does not answer"),
        ({"listed": False}, "D0: not ready after 1 s: it serves, but is not registered"),
        ({"instances": 401}, "router: does not list its instances, but answers 401: {}"),
        (
            {"ready": (503, {"error": {"message": "no encode instance"}})},
            "router: all instances are registered, but: no encode instance",
        ),
        ({"ready": (500, "oops")}, 'router: all instances are registered, but: 500 "oops"'),
    ],
)
async def test_start_fails_with_the_reason(world, change, reason):
    for name, value in change.items():
        setattr(world, name, value)
    with pytest.raises(ExceptionGroup) as found:
        await world.start()
    assert all(isinstance(error, ProcessFailedError) for error in found.value.exceptions)
    assert only(found.value) == reason


async def test_text_only_topology_needs_no_agreement(world):
    world.ready = (503, {})
    with pytest.raises(ExceptionGroup) as found:
        await world.start(text_only=True)
    assert isinstance(found.value.exceptions[0], EnoughError)


async def test_slow_instance_is_waited_for(world):
    world.listed = False

    async def later():
        await asyncio.sleep(0.3)
        world.listed = True

    task = asyncio.create_task(later())
    with pytest.raises(ExceptionGroup) as found:
        await world.start()
    await task
    assert isinstance(found.value.exceptions[0], EnoughError)
