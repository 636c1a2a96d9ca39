# SPDX-License-Identifier: Apache-2.0
"""The process of a router: what it says, and when it leaves."""

import asyncio
import gc
import logging
import signal
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from typing import Protocol

from vllm_epd.errors import ConfigError
from vllm_epd.memory import keep_freed_memory
from vllm_epd.router.config import RouterConfig
from vllm_epd.types import TOKEN_ENV

logger = logging.getLogger(__name__)

#: New objects after which the garbage collector looks at them; by default, fewer than one request makes.
_ALLOCATIONS = 50_000
_LOOPBACK = frozenset({"127.0.0.1", "::1", "localhost"})


class Server(Protocol):
    """What is to be run."""

    def running(self, host: str, port: int, *, shared: bool = False) -> AbstractAsyncContextManager[int]:
        """Serve at an address for the length of an `async with` block, which gets the port."""


async def run_until_signal(router: Server, config: RouterConfig) -> None:
    """Serve until SIGTERM or SIGINT, then take nothing new and let running requests finish.

    Raises:
        ConfigError: the address cannot be listened on.
    """
    show_messages()
    leave = _told_by(signal.SIGTERM, signal.SIGINT)
    await _serve(router, config, leave, lambda port: announce(config, port))


async def run_as_worker(router: Server, config: RouterConfig, parent: int, ready: Callable[[], None]) -> None:
    """The same for one of several processes that share the port, until SIGTERM or until `parent` closes.

    Args:
        router: what to serve.
        config: where.
        parent: a file that can be read once the parent is gone.
        ready: called once it listens.

    Raises:
        ConfigError: the address cannot be listened on.
    """
    leave = _told_by(signal.SIGTERM)

    def orphaned() -> None:
        asyncio.get_running_loop().remove_reader(parent)
        leave.set()

    asyncio.get_running_loop().add_reader(parent, orphaned)
    await _serve(router, config, leave, lambda port: ready(), shared=True)


def announce(config: RouterConfig, port: int) -> None:
    """Say where the router listens."""
    if config.token is None and config.host not in _LOOPBACK:
        logger.warning("anyone who reaches %s may register instances; set %s", config.host, TOKEN_ENV)
    host = f"[{config.host}]" if ":" in config.host else config.host
    logger.info("router listening on http://%s:%d", host, port)


async def _serve(
    router: Server,
    config: RouterConfig,
    leave: asyncio.Event,
    listening: Callable[[int], None],
    *,
    shared: bool = False,
) -> None:
    async with AsyncExitStack() as stack:
        try:
            port = await stack.enter_async_context(router.running(config.host, config.port, shared=shared))
        except OSError as error:
            raise cannot_listen(config, error) from error
        _collect_seldom()
        keep_freed_memory()
        listening(port)
        await leave.wait()
        logger.info("router is leaving; running requests have %g s", config.grace_s)


def _collect_seldom() -> None:
    """Have the garbage collector leave what was made at start alone, and look less often at the rest.

    Nearly all that a request makes goes by itself at its end.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(_ALLOCATIONS)


def cannot_listen(config: RouterConfig, error: OSError) -> ConfigError:
    """The error for an address that is taken, or none of this machine."""
    return ConfigError(f"cannot listen on {config.host}:{config.port}: {error}")


def _told_by(*signals: signal.Signals) -> asyncio.Event:
    """What the first signal sets; a second one has its usual effect."""
    loop = asyncio.get_running_loop()
    came = asyncio.Event()

    def leave() -> None:
        came.set()
        for each in signals:
            loop.remove_signal_handler(each)

    for each in signals:
        loop.add_signal_handler(each, leave)
    return came


def show_messages() -> None:
    """As a process of its own the router logs to standard error, unless the caller has decided otherwise."""
    if not logging.getLogger().handlers:
        logging.basicConfig(level=logging.INFO, format="%(levelname)s %(asctime)s %(name)s: %(message)s")
