# SPDX-License-Identifier: Apache-2.0
"""More requests at once than a fleet can serve: each is answered or refused, none is lost."""

import asyncio
from collections import Counter
from collections.abc import Callable

import httpx
import pytest

from tests.engine import calls
from tests.engine.conftest import LEASE_S
from tests.engine.gauges import wait_until_idle
from tests.engine.own_router import described, own_router
from tests.engine.system import System
from tests.engine.traffic import CHAT, TIMEOUT_S, ask, chat, image_part

pytestmark = [pytest.mark.engine, pytest.mark.slow]

CLIENTS = 200
IMAGES = 20
REFUSED = (429, 503)


async def test_two_hundred_at_once(system: System, record_property: Callable[[str, object], None]) -> None:
    """Against one encode, one prefill and one decode instance."""
    requests = [
        chat([image_part(7000 + index % IMAGES)], f"Describe {index}.", max_tokens=5) for index in range(CLIENTS)
    ]
    chosen = [system.instances(role)[0] for role in ("encode", "prefill", "decode")]
    async with (
        own_router([await described(each) for each in chosen]) as router,
        calls.client(timeout=TIMEOUT_S, limits=httpx.Limits(max_connections=None)) as client,
    ):
        answers = await asyncio.gather(*(client.post(router + CHAT, json=request) for request in requests))
    statuses = Counter(answer.status_code for answer in answers)
    record_property("statuses", dict(statuses))
    assert set(statuses) <= {200, *REFUSED}, statuses
    assert all("Retry-After" in answer.headers for answer in answers if answer.status_code in REFUSED)
    assert statuses[200] > 0
    await wait_until_idle(system, LEASE_S + 10.0)
    for index in (0, 1, CLIENTS - 1):
        if answers[index].status_code == 200:
            said = answers[index].json()["choices"][0]["message"]["content"]
            assert said == (await ask(system.single, requests[index])).text
