# SPDX-License-Identifier: Apache-2.0
"""An agent together with the processes that command it."""

import asyncio
import time
from dataclasses import replace
from uuid import uuid4

import torch
import zmq

from vllm_epd.transfer import wire
from vllm_epd.transfer.agent import AgentConfig, TransferAgent
from vllm_epd.transfer.handshake import Identity
from vllm_epd.transfer.items import Claim, Place, lease_pin
from vllm_epd.transfer.tiers import TransferMemory
from vllm_epd.types import Fingerprint

FINGERPRINT = Fingerprint("c", "w", "float32", "p", "0.32.0")
PAGE = 4096
CPU = torch.device("cpu")
LIMIT_S = 20.0


def new_address():
    return f"ipc://@epd-test-{uuid4().hex}"


def wait_until(probe, limit_s=LIMIT_S, pause_s=0.002):
    deadline = time.monotonic() + limit_s
    while not (found := probe()):
        assert time.monotonic() < deadline, "nothing within the time limit"
        time.sleep(pause_s)
    return found


async def until(probe, limit_s=LIMIT_S):
    deadline = time.monotonic() + limit_s
    while not (found := probe()):
        assert time.monotonic() < deadline, "nothing within the time limit"
        await asyncio.sleep(0.001)
    return found


def config(epoch=None, secret=b"s", fingerprint=FINGERPRINT, transport="shm", pool_bytes=1 << 20, **changes):
    return replace(
        AgentConfig(
            identity=Identity(epoch or uuid4().hex, fingerprint, secret),
            command=new_address(),
            listen=new_address(),
            memory=TransferMemory(pool_bytes, transport=transport),
            page_bytes=PAGE,
            timeout_s=5.0,
        ),
        **changes,
    )


class Party:
    """An agent in this process, and a socket that gives it commands."""

    def __init__(self, **changes):
        self.config = config(**changes)
        self.agent = TransferAgent(self.config)
        self.store = self.agent.store
        self.epoch = self.config.identity.epoch
        self._context = zmq.Context()
        self.orders = self._context.socket(zmq.DEALER)
        self.orders.connect(self.config.command)

    def tell(self, *commands):
        for command in commands:
            self.orders.send(wire.encode(command))

    def report(self, limit_s=LIMIT_S):
        assert self.orders.poll(limit_s * 1000), "no report within the time limit"
        return wire.decode_report(self.orders.recv())

    def ask(self, command, limit_s=LIMIT_S):
        self.tell(command)
        return self.report(limit_s)

    def meet(self, *others):
        self.tell(wire.SetPeers({other.epoch: [other.config.listen] for other in others}))

    def offer(self, key, tensor, lease=None, lease_s=60.0):
        places = self.store.claim([Claim(key, tensor.nbytes, lease_pin(lease or key), lease_s)])
        assert places == [Place.NEW]
        self.store.put(key, tensor)
        return self.handle(key, tensor.nbytes, lease)

    def handle(self, key, nbytes, lease=None):
        return wire.EmbeddingHandle(wire.WIRE_VERSION, key, lease or key, self.epoch, 0, nbytes)

    def pull(self, handle, number=0):
        return self.ask(wire.Pull(number, handle))

    def load(self, number, key):
        return self.agent.load(number, key, CPU)

    def state(self):
        return self.ask(wire.AskPool())

    def close(self):
        self.agent.close()
        self._context.destroy(linger=0)


def pattern(key, nbytes):
    """Bytes that no other key has."""
    generator = torch.Generator().manual_seed(sum(ord(letter) * 257**place for place, letter in enumerate(key)) % 2**63)
    return torch.randint(0, 256, (nbytes,), dtype=torch.uint8, generator=generator)
