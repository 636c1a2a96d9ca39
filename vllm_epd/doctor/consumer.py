# SPDX-License-Identifier: Apache-2.0
"""The instance that fetches: its agent, ordered about as a scheduler would."""

import itertools
import time
from uuid import uuid4

import torch
import zmq

from vllm_epd.doctor.items import PRODUCER_EPOCH, content, identity, keys
from vllm_epd.errors import TransferError
from vllm_epd.transfer import wire
from vllm_epd.transfer.agent import AgentConfig, TransferAgent
from vllm_epd.transfer.tiers import TransferMemory

ROOM_FOR = 2
"""Items; the next one wanted has made room for others, so that each pull moves bytes."""

CPU = torch.device("cpu")


class Consumer:
    """Fetches the items of one size from a producer of doctor's, over and over."""

    def __init__(
        self, address: str, nbytes: int, memory: TransferMemory, *, timeout_s: float, page_bytes: int = 64 * 1024
    ) -> None:
        """Fetch from the producer at the ZeroMQ `address`.

        Args:
            address: of the producer.
            nbytes: size of the items, a multiple of `page_bytes`.
            memory: whose size is overruled.
            timeout_s: after which a fetch has failed.
            page_bytes: size of the pool's pages.

        Raises:
            TransferError: no transport starts.
        """
        self._nbytes = nbytes
        self._timeout_s = timeout_s
        epoch = f"{PRODUCER_EPOCH}-{uuid4().hex}"
        room = TransferMemory(ROOM_FOR * nbytes, memory.device, memory.transport, memory.backend)
        command = f"ipc://@epd-{epoch}"
        config = AgentConfig(identity(epoch), command, None, room, page_bytes=page_bytes, timeout_s=timeout_s)
        self._agent = TransferAgent(config)
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._orders = self._context.socket(zmq.DEALER)
        self._orders.connect(command)
        self._tell(wire.SetPeers({PRODUCER_EPOCH: [address]}))
        self._numbers = itertools.count(1)
        self._keys = itertools.cycle(keys(nbytes))
        self._expected = {key: content(key, nbytes) for key in keys(nbytes)}

    def fetch(self, *, check: bool = True) -> float:
        """Fetch the next item; the seconds from the command to the report that the bytes are here.

        Raises:
            TransferError: it could not be had or was here already, or, with `check`, its bytes are not the producer's.
        """
        number, key = next(self._numbers), next(self._keys)
        handle = wire.EmbeddingHandle(wire.WIRE_VERSION, key, key, PRODUCER_EPOCH, 0, self._nbytes)
        start = time.perf_counter()
        self._tell(wire.Pull(number, handle))
        report = self._report()
        seconds = time.perf_counter() - start
        if not isinstance(report, wire.Pulled):
            raise TransferError(report.reason if isinstance(report, wire.PullFailed) else f"unexpected {report}")
        if check and not torch.equal(self._agent.load(number, key, CPU), self._expected[key]):
            raise TransferError(f"the bytes of {key} differ from what was offered")
        self._tell(wire.Drop(number, int(check)))
        self._tell(wire.Release(handle))
        self._settle()
        return seconds

    def close(self) -> None:
        """Stop the agent; a second call does nothing."""
        self._context.destroy(linger=0)
        self._agent.close()

    def _settle(self) -> None:
        """Wait until what was ordered before is done, so that it takes no time from the next fetch."""
        self._tell(wire.AskPool())
        report = self._report()
        if not isinstance(report, wire.PoolState) or report.hits:
            raise TransferError(f"an item was not fetched, but here already: {report}")

    def _tell(self, command: wire.Command) -> None:
        self._orders.send(wire.encode(command))

    def _report(self) -> wire.Report:
        if not self._orders.poll(int(2000 * self._timeout_s)):
            raise TransferError(f"no report within {2 * self._timeout_s:g} s")
        return wire.decode_report(self._orders.recv())
