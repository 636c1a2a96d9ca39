# SPDX-License-Identifier: Apache-2.0
"""What an API server tells the KV agents of its instance reaches all of them."""

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
import zmq.asyncio

from vllm_epd.connectors.agent_client import AgentClient
from vllm_epd.transfer import wire


@pytest.mark.parametrize(
    ("tell", "command"),
    [
        (lambda client: client.expect(1, "t", "e-kv"), wire.Expect("t", "e-kv", 1)),
        (lambda client: client.forget("t"), wire.Forget("t")),
    ],
)
async def test_all_agents_are_told(
    tmp_path: Path, tell: Callable[[AgentClient], Awaitable[None]], command: wire.Command
) -> None:
    context = zmq.asyncio.Context()
    addresses = [[f"ipc://{tmp_path}/{dp}{tp}" for tp in range(2)] for dp in range(2)]
    agents = [context.socket(zmq.ROUTER) for _ in range(4)]
    for agent, address in zip(agents, [each for ranks in addresses for each in ranks], strict=True):
        agent.bind(address)
    client = AgentClient(addresses)
    try:
        await tell(client)
        heard = await asyncio.wait_for(asyncio.gather(*(agent.recv_multipart() for agent in agents)), 10)
        assert [wire.decode_command(data) for _, data in heard] == [command] * 4
    finally:
        client.close()
        context.destroy(linger=0)
