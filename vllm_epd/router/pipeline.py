# SPDX-License-Identifier: Apache-2.0
"""Runs the steps of a request, measures them, and starts over on other instances where that is safe."""

import logging
from collections.abc import Sequence
from typing import Protocol

from vllm_epd.errors import RequestError
from vllm_epd.router.context import RequestContext
from vllm_epd.router.failures import UnreachableError

logger = logging.getLogger(__name__)

#: How many instances that cannot be reached one request passes over.
RETRIES = 2


class Step(Protocol):
    """One stage of the way of a request."""

    name: str

    def applies(self, ctx: RequestContext) -> bool:
        """Whether the request needs this step, and has not got past it in an earlier attempt."""

    async def run(self, ctx: RequestContext) -> None:
        """Do it and leave the result in `ctx`.

        Raises:
            RequestError: the request cannot be served.
        """


async def run_steps(steps: Sequence[Step], ctx: RequestContext) -> None:
    """Run the steps that apply, in order."""
    for step in steps:
        if step.applies(ctx):
            with ctx.services.metrics.stage(step.name):
                await step.run(ctx)


class Pipeline:
    """The steps of a request, with a new start when an instance cannot be reached.

    Nothing was sent to such an instance, and the client has seen nothing, so starting over is safe. What
    earlier steps have done is kept. The instance is left alone until it reports again.
    """

    def __init__(self, steps: Sequence[Step]) -> None:
        self._steps = tuple(steps)

    async def run(self, ctx: RequestContext) -> None:
        """Serve one request.

        Raises:
            RequestError: it cannot be served; if `ctx.sink` has started, a part of it was.
        """
        try:
            await self._run(ctx)
        finally:
            ctx.leases.abandon(ctx.services.encoders.leases.release)
            ctx.close_offer()

    async def _run(self, ctx: RequestContext) -> None:
        for left in reversed(range(RETRIES + 1)):
            try:
                with ctx.hold:
                    await run_steps(self._steps, ctx)
                return
            except UnreachableError as error:
                ctx.services.registry.suspend(error.instance)
                if ctx.sink.started or not left:
                    raise
                logger.warning("request %s starts over: %s", ctx.request_id, error)


def log_failure(request_id: str, error: RequestError) -> None:
    """Write down why a request was not served; a client's own mistakes are its own business."""
    if error.status >= 500:
        logger.warning("request %s failed with status %d: %s", request_id, error.status, error)
