# SPDX-License-Identifier: Apache-2.0
"""The bytes of an image reach one encode instance and nobody else: counted on the wire."""

import base64
import io
from collections.abc import Callable
from contextlib import AsyncExitStack

import numpy as np
import pytest
from PIL import Image

from tests.engine.forwarder import Forwarder, forwarding
from tests.engine.gauges import ROLES
from tests.engine.own_router import described, own_router
from tests.engine.system import System
from tests.engine.test_exactness import TOLERANCE, differences
from tests.engine.traffic import ask, bytes_part, chat

pytestmark = [pytest.mark.engine, pytest.mark.slow]

SMALL_BYTES = 64 * 1024


def noise(seed: int, side: int) -> bytes:
    """A PNG that does not compress."""
    pixels = np.random.default_rng(seed).integers(0, 256, (side, side, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG")
    return buffer.getvalue()


async def counted(system: System, stack: AsyncExitStack) -> tuple[str, dict[str, list[Forwarder]]]:
    """A router that reaches the system's instances through forwarders, and these by role."""
    forwarders: dict[str, list[Forwarder]] = {role: [] for role in ROLES}
    infos = []
    for role in ROLES:
        for instance in system.instances(role):
            forwarder = await stack.enter_async_context(forwarding(instance))
            forwarders[role].append(forwarder)
            infos.append(await described(instance, url=forwarder.url))
    return await stack.enter_async_context(own_router(infos)), forwarders


async def test_each_image_goes_to_one_encode_instance_and_to_nobody_else(
    system: System, record_property: Callable[[str, object], None]
) -> None:
    images = [noise(1, 1168), noise(2, 1240)]
    on_the_wire = [len(base64.b64encode(image)) for image in images]
    assert min(len(image) for image in images) > 4_000_000
    request = chat([bytes_part(image) for image in images])
    async with AsyncExitStack() as stack:
        router, forwarders = await counted(system, stack)
        answer = await ask(router, request)
        sent = {role: [each.sent for each in forwarders[role]] for role in ROLES}
    record_property("sent", sent)
    wanted = await ask(system.single, request)
    assert not differences(answer, wanted, TOLERANCE[system.dtype])
    assert sorted(sent["encode"]) == [pytest.approx(size, abs=SMALL_BYTES) for size in sorted(on_the_wire)]
    assert all(0 < size < SMALL_BYTES for size in (*sent["prefill"], *sent["decode"])), sent
