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
    coroutines = list(parts)
    if len(coroutines) == 1:
        return [await coroutines[0]]
    tasks = [asyncio.create_task(each) for each in coroutines]
    try:
        return await asyncio.gather(*tasks)
    except BaseException:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        raise
