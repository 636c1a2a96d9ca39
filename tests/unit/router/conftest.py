# SPDX-License-Identifier: Apache-2.0
"""A router with stub instances, all on loopback ports of this process."""

import asyncio
import base64
import json
import struct
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager

import aiohttp
import pytest

from tests.fakes.instance import FakeInstance
from vllm_epd.router.app import Router
from vllm_epd.router.config import RouterConfig


class Clock:
    """A clock that moves when told."""

    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


class Answer:
    """A whole answer of the router."""

    def __init__(self, status, headers, raw):
        self.status = status
        self.headers = headers
        self.raw = raw

    @property
    def json(self):
        return json.loads(self.raw)

    @property
    def error(self):
        return self.json["error"]

    @property
    def texts(self):
        return [c["message"]["content"] if "message" in c else c["text"] for c in self.json["choices"]]

    @property
    def text(self):
        (text,) = self.texts
        return text

    @property
    def events(self):
        """What each event of a stream carries; the last one is the closing one."""
        blocks = self.raw.decode().split("\n\n")
        assert blocks.pop() == ""
        assert all(block.startswith("data: ") for block in blocks)
        assert blocks.pop() == "data: [DONE]"
        return [json.loads(block.removeprefix("data: ")) for block in blocks]

    @property
    def streamed(self):
        """The text of each choice of a stream."""
        texts = {}
        for event in self.events:
            for choice in event["choices"]:
                text = choice["delta"]["content"] if "delta" in choice else choice["text"]
                texts[choice["index"]] = texts.get(choice["index"], "") + text
        return texts


class Cluster:
    """A router and the instances that registered with it."""

    def __init__(self, session, config, clock):
        self.session = session
        self.clock = clock
        self._router = Router(config, clock)
        self.parts = self._router.parts
        self._running = AsyncExitStack()
        self._headers = {"Authorization": f"Bearer {config.token}"} if config.token else {}
        self._fakes = []
        self.url = ""

    async def start(self):
        port = await self._running.enter_async_context(self._router.running("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{port}"

    async def leave(self):
        """Have the router end; once, however often it is called."""
        await self._running.aclose()

    async def stop(self):
        await self.leave()
        for fake in self._fakes:
            await fake.stop()
            assert fake.overruns == [], "more was put into the pool than it holds"

    async def add(self, letters, make=FakeInstance, **kwargs):
        """Start an instance and register it."""
        fake = make(letters, **kwargs)
        await fake.start()
        self._fakes.append(fake)
        await self.register(fake)
        return fake

    async def register(self, fake):
        """Have an instance describe itself as it is now."""
        answer = await self.call("POST", "/epd/instances", fake.info().to_mapping(), headers=self._headers)
        assert answer.status == 200

    async def remove(self, fake):
        """Have an instance leave."""
        path = f"/epd/instances/{fake.instance_id}?epoch={fake.epoch}"
        assert (await self.call("DELETE", path, headers=self._headers)).status == 204

    async def up(self, *letters):
        """Start and register an instance for each of `letters`."""
        return [await self.add(each) for each in letters]

    @property
    def registry(self):
        return self.parts.services.registry

    def instance(self, fake):
        """What the router knows of an instance."""
        (found,) = [each for each in self.registry.listed() if each.name == fake.instance_id]
        return found

    async def nothing_held(self):
        """Wait until no encoder leases anything and the router counts nothing as held."""
        encoders = [fake for fake in self._fakes if fake.roles.encode]
        await soon(lambda: not any(fake.leases for fake in encoders))
        await soon(lambda: not any(each.pool.used or each.outstanding for each in self.registry.listed()))
        assert self.parts.services.encoders.queue.waiting == 0
        assert self.parts.services.encoders.leaders == {}

    async def metric(self, name):
        """The value of one line of the metrics."""
        shown = (await self.call("GET", "/metrics")).raw.decode()
        found = [line.split(" ")[-1] for line in shown.splitlines() if line.startswith(f"vllm_epd_router_{name} ")]
        return float(found[0]) if found else 0.0

    async def call(self, method, path, body=None, **kwargs):
        if body is not None:
            kwargs["json"] = body
        async with self.session.request(method, self.url + path, **kwargs) as response:
            return Answer(response.status, response.headers, await response.read())

    async def chat(self, content, headers=None, **fields):
        body = {"model": "tiny", "messages": [{"role": "user", "content": content}], **fields}
        return await self.call("POST", "/v1/chat/completions", body, headers=headers)

    async def complete(self, prompt, headers=None, **fields):
        body = {"model": "tiny", "prompt": prompt, **fields}
        return await self.call("POST", "/v1/completions", body, headers=headers)


def image(data, **extra):
    """A media part; `data` stands for the bytes of an image."""
    return {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{data}"}, **extra}


def sized(width, height, tag=0):
    """A media part that begins as a PNG of that size does; `tag` tells apart what is equally large."""
    head = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR" + struct.pack(">II", width, height)
    return image(base64.b64encode(head + tag.to_bytes(8, "big")).decode())


def text(words):
    return {"type": "text", "text": words}


async def soon(condition):
    """Wait until `condition()` holds."""
    for _ in range(4000):
        if condition():
            return
        await asyncio.sleep(0.005)
    raise AssertionError("it did not happen in 20 s")


@contextmanager
def busy(instance, work=0.0):
    """Count one call more to what the router knows of an instance."""
    instance.begin(work)
    yield
    instance.end(work)


def hold(*fakes):
    """Have instances wait before they answer."""
    for fake in fakes:
        fake.arrived.clear()
        fake.does.hold = asyncio.Event()


async def answers_after(clock, fake, seconds):
    """Have an instance that waits answer what it is asked first, after some time."""
    await fake.arrived.wait()
    clock.now += seconds
    fake.does.hold.set()


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
async def session():
    async with aiohttp.ClientSession() as opened:
        yield opened


@pytest.fixture
async def cluster_with(session, clock):
    """Starts a router with settings of its own."""

    @asynccontextmanager
    async def start(**settings):
        cluster = Cluster(session, RouterConfig(**{"token": None, "grace_s": 0.1, **settings}), clock)
        await cluster.start()
        try:
            yield cluster
        finally:
            await cluster.stop()

    return start


@pytest.fixture
async def cluster(cluster_with):
    async with cluster_with() as started:
        yield started
