# SPDX-License-Identifier: Apache-2.0
"""Running several parts of one request at once."""

import asyncio
from collections.abc import Coroutine, Iterable
from typing import Any, TypeVar

T = TypeVar("T")


async def all_or_cancel(parts: Iterable[Coroutine[Any, Any, T]]) -> list[T]:
    """Run the parts at once and return their results in order.

    The first failure is raised after the other parts have been cancelled and have ended, so that nothing of
    a failed request is left running. The same holds when the caller is cancelled.
    """
    tasks = [asyncio.create_task(part) for part in parts]
    try:
        return await asyncio.gather(*tasks)
    except BaseException:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        raise
