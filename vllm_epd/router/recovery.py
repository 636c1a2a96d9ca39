# SPDX-License-Identifier: Apache-2.0
"""What the requests of a router share for being tried again, and the loop that tries one again."""

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from random import Random
from typing import TYPE_CHECKING, Protocol

from vllm_epd.errors import UpstreamError
from vllm_epd.router.breaker import PairBreakers
from vllm_epd.router.retries import RetryBudget, Tries
from vllm_epd.router.timeline import Span

if TYPE_CHECKING:
    from vllm_epd.router.context import RequestContext

logger = logging.getLogger(__name__)


class Step(Protocol):
    """One stage of the way of a request."""

    @property
    def span(self) -> Span | None:
        """What its time counts as; None where that is the time of other steps which it runs."""

    def applies(self, ctx: "RequestContext") -> bool:
        """Whether the request needs this step, and has not got past it in an earlier attempt."""

    async def run(self, ctx: "RequestContext") -> None:
        """Do it and leave the result in `ctx`.

        Raises:
            RequestError: the request cannot be served.
        """


class Recovery:
    """The retry budget, the pairs that fail together, and the room for what requests need to start over."""

    def __init__(self, retries: int, recovery_bytes: int, clock: Callable[[], float] = time.monotonic) -> None:
        self.retries = retries
        self.budget = RetryBudget(clock)
        self.pairs = PairBreakers(clock)
        self.random = Random()
        self._free_bytes = recovery_bytes

    def keep(self, nbytes: int) -> bool:
        """Whether there is room for a body of so many bytes; it is taken then, until `drop`."""
        if nbytes > self._free_bytes:
            return False
        self._free_bytes -= nbytes
        return True

    def drop(self, nbytes: int) -> None:
        """Take back one `keep`."""
        self._free_bytes += nbytes


async def run_steps(steps: Sequence[Step], ctx: "RequestContext") -> None:
    """Run the steps that apply, in order."""
    for step in steps:
        if step.applies(ctx):
            with nullcontext() if step.span is None else ctx.record.timeline.during(step.span):
                await step.run(ctx)


async def serve(steps: Sequence[Step], ctx: "RequestContext") -> None:
    """Run the steps; start over, with other instances, where one failed at them.

    Raises:
        RequestError: the request cannot be served; if `ctx.sink` has started, a part of it was.
    """
    recovery = ctx.services.recovery
    recovery.budget.deposit()
    tries = Tries(recovery.retries)
    while True:
        try:
            with ctx.hold:
                await run_steps(steps, ctx)
            return
        except UpstreamError as error:
            if not ctx.note_failure(error) or not tries.another(error) or not recovery.budget.withdraw():
                raise
            ctx.services.metrics.retried(error.stage)
            ctx.record.retried(error.stage)
            logger.warning("request %s starts over: %s", ctx.request_id, error)
            ctx.start_over(error)
        with ctx.record.timeline.during(Span.BACKOFF):
            await asyncio.sleep(tries.backoff_s(recovery.random))
