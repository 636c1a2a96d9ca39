# SPDX-License-Identifier: Apache-2.0
"""What the processes of an instance ask of its agent, and what they are told."""

import asyncio
import logging
from collections.abc import Callable

import zmq.asyncio

from vllm_epd.errors import TransferError
from vllm_epd.transfer import wire
from vllm_epd.transfer.expectations import Expectations
from vllm_epd.transfer.fetch import Fetcher
from vllm_epd.transfer.landings import Landings, Offers
from vllm_epd.transfer.peers import PeerBook

logger = logging.getLogger(__name__)


class Commands:
    """Carries out one command each, all side by side."""

    def __init__(
        self,
        landings: Landings,
        offers: Offers,
        expectations: Expectations,
        fetcher: Fetcher,
        peers: PeerBook,
        timeout_s: float,
        pool_state: Callable[[], wire.PoolState],
    ) -> None:
        """A pull fails after `timeout_s`."""
        self._landings = landings
        self._offers = offers
        self._expectations = expectations
        self._fetcher = fetcher
        self._peers = peers
        self._timeout_s = timeout_s
        self._pool_state = pool_state

    async def obey(self, orders: zmq.asyncio.Socket) -> None:
        """Take commands from a ROUTER socket for ever, and report to whoever gave them."""
        running: set[asyncio.Task[None]] = set()
        while True:
            frames = await orders.recv_multipart()
            try:
                sender, frame = frames
                command = wire.decode_command(frame)
            except (TransferError, ValueError, RecursionError) as error:
                logger.error("ignored a command: %s", error)
                continue
            task = asyncio.create_task(self._report(command, orders, sender))
            running.add(task)
            task.add_done_callback(running.discard)

    async def _report(self, command: wire.Command, orders: zmq.asyncio.Socket, sender: bytes) -> None:
        report = await self._do(command)
        if report is not None:
            await orders.send_multipart([sender, wire.encode(report)])

    async def _do(self, command: wire.Command) -> wire.Report | None:
        match command:
            case wire.Pull():
                return await self._pull(command)
            case wire.Reserve(items=[first, *_]):
                return await self._reserve(first.landing, command)
            case wire.TakeLease():
                return self._take(command)
            case wire.AskPool():
                return self._pool_state()
            case wire.Drop():
                self._landings.drop(command.landing, command.loads)
            case wire.Withdraw():
                self._offers.withdraw(command.leases, command.landings)
            case wire.Release():
                await self._fetcher.acknowledge(command.handle)
            case wire.Expect():
                self._expectations.expect(command)
            case wire.Forget():
                self._expectations.forget(command.transfer)
                self._offers.forget(command.transfer)
            case wire.SetPeers():
                self._peers.set(command.addresses)
                await self._fetcher.forget_strangers()
            case wire.Reserve():
                logger.error("ignored a reservation of nothing")
        return None

    async def _pull(self, pull: wire.Pull) -> wire.Report:
        try:
            async with asyncio.timeout(self._timeout_s):
                await self._landings.pull(pull.landing, pull.handle)
        except asyncio.CancelledError:
            return wire.PullFailed(pull.landing, "dropped")
        except TimeoutError:
            return wire.PullFailed(pull.landing, f"not here within {self._timeout_s:.0f} s")
        except TransferError as error:
            return wire.PullFailed(pull.landing, str(error))
        except Exception as error:  # noqa: BLE001  without a report the request would wait for ever
            logger.exception("fetching %s failed", pull.handle.key)
            return wire.PullFailed(pull.landing, f"{type(error).__name__}: {error}")
        return wire.Pulled(pull.landing)

    def _take(self, take: wire.TakeLease) -> wire.Report:
        try:
            return wire.LeaseTaken(self._offers.take(take.key, take.lease))
        except TransferError as error:
            logger.error("no lease %s on %s: %s", take.lease, take.key, error)
            return wire.LeaseTaken(None)

    async def _reserve(self, first: int, reserve: wire.Reserve) -> wire.Report:
        try:
            offered = await self._offers.reserve(reserve.items, reserve.transfer)
            return wire.Reserved(first, offered.held, offered.sizes)
        except asyncio.CancelledError:
            return wire.ReserveFailed(first, "withdrawn")
        except TimeoutError:
            return wire.ReserveFailed(
                first, f"no room in the pool within {self._timeout_s:.0f} s: consumers do not read"
            )
        except TransferError as error:
            return wire.ReserveFailed(first, str(error))
