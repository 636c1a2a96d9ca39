# SPDX-License-Identifier: Apache-2.0
"""The steps of a request from its beginning to its end."""

import logging
from collections.abc import Sequence

from vllm_epd.errors import RequestError
from vllm_epd.router.context import RequestContext
from vllm_epd.router.recovery import Step, serve

logger = logging.getLogger(__name__)


class Pipeline:
    """The steps of a request; in the end nothing is held for it anywhere."""

    def __init__(self, steps: Sequence[Step]) -> None:
        self._steps = tuple(steps)

    async def run(self, ctx: RequestContext) -> None:
        """Serve one request.

        Raises:
            RequestError: it cannot be served; if `ctx.sink` has started, a part of it was.
        """
        recovery, nbytes = ctx.services.recovery, ctx.request.nbytes
        kept = recovery.keep(nbytes)
        ctx.original = ctx.request if kept else None
        try:
            await serve(self._steps, ctx)
        finally:
            ctx.let_go()
            if kept:
                recovery.drop(nbytes)


def log_failure(request_id: str, error: RequestError) -> None:
    """Write down why a request was not served; a client's own mistakes are its own business."""
    if error.status >= 500:
        logger.warning("request %s failed with status %d: %s", request_id, error.status, error)
