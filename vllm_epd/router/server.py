# SPDX-License-Identifier: Apache-2.0
"""Listening, and leaving in good order."""

import asyncio
import logging
import signal

from aiohttp import web

from vllm_epd.errors import ConfigError
from vllm_epd.router.config import RouterConfig
from vllm_epd.types import TOKEN_ENV

logger = logging.getLogger(__name__)

_LOOPBACK = frozenset({"127.0.0.1", "::1", "localhost"})


async def run_until_signal(app: web.Application, config: RouterConfig) -> None:
    """Serve `app` until SIGTERM or SIGINT, then take nothing new and let running requests finish.

    Raises:
        ConfigError: the address cannot be listened on.
    """
    _show_messages()
    leave = _signalled()
    # The runner stops listening first, then waits for running handlers, and cancels those left after that.
    runner = web.AppRunner(app, handler_cancellation=True, access_log=None, shutdown_timeout=config.grace_s)
    await runner.setup()
    try:
        await _listen(runner, config)
        await leave.wait()
        logger.info("router is leaving; running requests have %g s", config.grace_s)
    finally:
        await runner.cleanup()


async def _listen(runner: web.AppRunner, config: RouterConfig) -> None:
    try:
        await web.TCPSite(runner, config.host, config.port).start()
    except OSError as error:
        raise ConfigError(f"cannot listen on {config.host}:{config.port}: {error}") from error
    if config.token is None and config.host not in _LOOPBACK:
        logger.warning("anyone who reaches %s may register instances; set %s", config.host, TOKEN_ENV)
    host = f"[{config.host}]" if ":" in config.host else config.host
    logger.info("router listening on http://%s:%d", host, runner.addresses[0][1])


def _signalled() -> asyncio.Event:
    """What the first signal sets; a second one has its usual effect."""
    loop = asyncio.get_running_loop()
    came = asyncio.Event()
    signals = (signal.SIGTERM, signal.SIGINT)

    def leave() -> None:
        came.set()
        for each in signals:
            loop.remove_signal_handler(each)

    for each in signals:
        loop.add_signal_handler(each, leave)
    return came


def _show_messages() -> None:
    """As a process of its own the router logs to standard error, unless the caller has decided otherwise."""
    if not logging.getLogger().handlers:
        logging.basicConfig(level=logging.INFO, format="%(levelname)s %(asctime)s %(name)s: %(message)s")
