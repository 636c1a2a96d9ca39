# SPDX-License-Identifier: Apache-2.0
"""What the API server of an instance asks of the transfer agents of its workers."""

import asyncio
from collections.abc import Mapping, Sequence

import zmq
import zmq.asyncio

from vllm_epd.errors import PeerError
from vllm_epd.transfer import wire

TIMEOUT_S = 2.0


class AgentClient:
    """Talks to the agents of one instance over their command addresses; open between construction and `close`."""

    def __init__(self, addresses: Sequence[Sequence[str]]) -> None:
        """Connect to the agents at `addresses`, by data-parallel and then by tensor-parallel rank."""
        self._context = zmq.asyncio.Context()
        self._addresses = [list(ranks) for ranks in addresses]

    async def pool_state(self, rank: int = 0) -> wire.PoolState:
        """The state of the region of data-parallel rank `rank`.

        Raises:
            PeerError: no agent answers there in time.
        """
        report = await self._ask(self._first(rank), wire.AskPool())
        if not isinstance(report, wire.PoolState):
            raise _unexpected(report)
        return report

    async def take_lease(self, rank: int, key: str, lease: str) -> wire.EmbeddingHandle | None:
        """Lease `key` to one more consumer; a handle without an epoch, None where it is not held.

        Raises:
            PeerError: no agent answers there in time.
        """
        report = await self._ask(self._first(rank), wire.TakeLease(key, lease))
        if not isinstance(report, wire.LeaseTaken):
            raise _unexpected(report)
        if report.nbytes is None:
            return None
        return wire.EmbeddingHandle(wire.WIRE_VERSION, key, lease, "", rank, report.nbytes)

    async def withdraw(self, rank: int, leases: Sequence[str]) -> None:
        """End leases that nobody will come for.

        Raises:
            PeerError: there is no such rank.
        """
        await self._tell(self._first(rank), wire.Withdraw(list(leases)))

    async def expect(self, rank: int, transfer: str, epoch: str) -> None:
        """Have KV agents fetch what agent `rank` of the producer `epoch` offers as `transfer`, as it comes to be."""
        await self._tell_all(wire.Expect(transfer, epoch, rank))

    async def forget(self, transfer: str) -> None:
        """Have all agents drop what is left of `transfer`; nothing where there is nothing left."""
        await self._tell_all(wire.Forget(transfer))

    async def set_peers(self, addresses: Mapping[str, Sequence[str]]) -> None:
        """Tell all agents who is registered: addresses of agents by epoch."""
        await self._tell_all(wire.SetPeers({epoch: list(each) for epoch, each in addresses.items()}))

    def close(self) -> None:
        """Let go of all sockets."""
        self._context.destroy(linger=0)

    def _first(self, rank: int) -> str:
        if not 0 <= rank < len(self._addresses):
            raise PeerError(f"there are {len(self._addresses)} data-parallel ranks here, none is {rank}")
        return self._addresses[rank][0]

    async def _ask(self, address: str, command: wire.Command) -> wire.Report:
        with self._context.socket(zmq.DEALER) as socket:
            socket.setsockopt(zmq.LINGER, 0)
            socket.connect(address)
            await socket.send(wire.encode(command))
            try:
                async with asyncio.timeout(TIMEOUT_S):
                    return wire.decode_report(await socket.recv())
            except TimeoutError as error:
                raise PeerError(f"no transfer agent at {address}") from error

    async def _tell_all(self, command: wire.Command) -> None:
        for address in [address for ranks in self._addresses for address in ranks]:
            await self._tell(address, command)

    async def _tell(self, address: str, command: wire.Command) -> None:
        with self._context.socket(zmq.DEALER) as socket:
            socket.setsockopt(zmq.LINGER, int(TIMEOUT_S * 1000))
            socket.connect(address)
            await socket.send(wire.encode(command))


def _unexpected(report: wire.Report) -> PeerError:
    return PeerError(f"the transfer agent answered with {type(report).__name__}")
