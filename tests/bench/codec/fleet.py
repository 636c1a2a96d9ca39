# SPDX-License-Identifier: Apache-2.0
"""A single server, and a prefill and a decode instance beside one encode instance for each codec."""

from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from random import Random

from tests.bench.client import open_session
from tests.bench.codec.cases import DTYPE
from tests.bench.processes import HOST, STOCK, Place, running, serve_command, until_ready
from tests.engine.own_router import described, own_router
from vllm_epd.demo import serve_args
from vllm_epd.launch.ports import free_ports
from vllm_epd.launch.probe import is_healthy, registered_urls
from vllm_epd.transfer.codec import CODECS

SINGLE, PREFILL, DECODE = "single", "prefill", "decode"
POOL_BYTES = 64 << 20


@dataclass(frozen=True, slots=True)
class Fleet:
    """Base URLs of what runs: of `encoders` by codec."""

    single: str
    prefill: str
    decode: str
    encoders: Mapping[str, str]

    @asynccontextmanager
    async def router(self, codec: str) -> AsyncIterator[str]:
        """A router that knows one encode instance, the one of this codec: 1E1P1D."""
        async with own_router([await described(url) for url in self._topology(codec)]) as url:
            yield url

    def _topology(self, codec: str) -> tuple[str, str, str]:
        return self.encoders[codec], self.prefill, self.decode


@asynccontextmanager
async def running_fleet(family: str, place: Place) -> AsyncIterator[Fleet]:
    """Start everything at once, and stop it when the context closes."""
    names = (SINGLE, PREFILL, DECODE, *CODECS)
    ports = dict(zip(names, free_ports(HOST, len(names), Random()), strict=True))
    urls = {name: f"http://{HOST}:{port}" for name, port in ports.items()}
    async with AsyncExitStack() as stack:
        # They tell this router where they are, and learn of each other from it.
        registry = await stack.enter_async_context(own_router([]))
        session = await stack.enter_async_context(open_session())
        children = []
        for name, port in ports.items():
            command = serve_command(place, port, "--dtype", DTYPE, *serve_args(family), *_role(name, registry))
            environment = STOCK if name == SINGLE else {}
            log = place.logs / f"codec-{family}-{name}.log"
            children.append(await stack.enter_async_context(running(command, log, environment)))

        async def ready() -> bool:
            registered = await registered_urls(session, registry)
            return registered >= set(urls.values()) - {urls[SINGLE]} and await is_healthy(session, urls[SINGLE])

        await until_ready(children, ready)
        yield Fleet(urls[SINGLE], urls[PREFILL], urls[DECODE], {codec: urls[codec] for codec in CODECS})


def _role(name: str, registry: str) -> tuple[str, ...]:
    if name == SINGLE:
        return ()
    role = name if name in (PREFILL, DECODE) else "encode"
    codec = ("--epd-embedding-codec", name) if name in CODECS else ()
    return ("--epd-role", role, "--epd-router", registry, "--epd-pool-bytes", str(POOL_BYTES), *codec)
