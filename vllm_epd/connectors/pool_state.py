# SPDX-License-Identifier: Apache-2.0
"""Ask the agent of one worker how full its region is, from another process of the instance."""

import asyncio

import zmq
import zmq.asyncio

from vllm_epd.errors import PeerError
from vllm_epd.transfer import wire


async def ask_pool_state(address: str, timeout_s: float = 2.0) -> wire.PoolState:
    """The state of the region behind the agent's command address.

    Raises:
        PeerError: no agent answers there in time.
    """
    with zmq.asyncio.Context() as context, context.socket(zmq.DEALER) as socket:
        socket.setsockopt(zmq.LINGER, 0)
        socket.connect(address)
        await socket.send(wire.encode(wire.AskPool()))
        try:
            async with asyncio.timeout(timeout_s):
                report = wire.decode_report(await socket.recv())
        except TimeoutError as error:
            raise PeerError(f"no transfer agent at {address}") from error
    if not isinstance(report, wire.PoolState):
        raise PeerError(f"the transfer agent at {address} answered with {type(report).__name__}")
    return report
