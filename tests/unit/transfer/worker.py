# SPDX-License-Identifier: Apache-2.0
"""An agent in a process of its own: the other end is told over a pipe what the model's thread would do."""

import multiprocessing
import os
import random
import zlib
from dataclasses import dataclass

import numpy as np
import torch
import zmq

from tests.unit.transfer.parties import CPU, LIMIT_S, config
from vllm_epd.transfer import wire
from vllm_epd.transfer.agent import TransferAgent
from vllm_epd.transfer.connection import Connection
from vllm_epd.transfer.items import Claim, lease_pin

_processes = multiprocessing.get_context("forkserver")
_processes.set_forkserver_preload([__name__])


def content(key, nbytes):
    """The bytes of `key`, known to both sides."""
    return torch.from_numpy(
        np.frombuffer(np.random.default_rng(zlib.crc32(key.encode())).bytes(nbytes), np.uint8).copy()
    )


@dataclass(frozen=True)
class Vitals:
    """What a process has open."""

    descriptors: int
    peer_mappings: int


class Worker:
    """The parent's end: a child process, its pipe, and a socket to its agent's commands."""

    def __init__(self, context, unreliable=None, **changes):
        """Start the process; `ready` tells when it serves. With a seed in `unreliable`, it loses and repeats words."""
        self.config = config(**changes)
        self.epoch = self.config.identity.epoch
        self._pipe, theirs = _processes.Pipe()
        self.process = _processes.Process(target=_main, args=(theirs, self.config, unreliable), daemon=True)
        self.process.start()
        theirs.close()
        self.orders = context.socket(zmq.DEALER)
        self.orders.connect(self.config.command)
        self.is_ready = False

    def poll_ready(self):
        if not self.is_ready and self._pipe.poll():
            assert self._pipe.recv() == "ready"
            self.is_ready = True
        return self.is_ready

    def wait_ready(self):
        assert self._pipe.poll(60), "the process does not start"
        assert self.poll_ready()
        return self

    def do(self, what, *arguments):
        self._pipe.send((what, arguments))
        assert self._pipe.poll(LIMIT_S), f"no answer to {what} within the time limit"
        return self._pipe.recv()

    def tell(self, *commands):
        for command in commands:
            self.orders.send(wire.encode(command))

    def report(self, limit_s=LIMIT_S):
        assert self.orders.poll(limit_s * 1000), "no report within the time limit"
        return wire.decode_report(self.orders.recv())

    def handle(self, key, nbytes):
        return wire.EmbeddingHandle(wire.WIRE_VERSION, key, key, self.epoch, 0, nbytes)

    def private_bytes(self):
        """Resident memory without the pool's."""
        with open(f"/proc/{self.process.pid}/status") as status:
            (line,) = [line for line in status if line.startswith("RssAnon")]
        return int(line.split()[1]) * 1024

    def kill(self):
        self.process.kill()
        self._reap()

    def stop(self):
        self._pipe.send(("stop", ()))
        self._reap()

    def _reap(self):
        self.process.join(LIMIT_S)
        assert self.process.exitcode is not None, "the process does not end"
        self.exitcode = self.process.exitcode
        self.process.close()
        self._pipe.close()
        self.orders.close(linger=0)


class _Model:
    """What the child does on its parent's word."""

    def __init__(self, agent):
        self._agent = agent

    def offer(self, items):
        """Offer `(key, nbytes, lease_s)`; those for which there was room."""
        return [item for item in items if self._offer(*item)]

    def _offer(self, key, nbytes, lease_s):
        if self._agent.store.claim([Claim(key, nbytes, lease_pin(key), lease_s)]) is None:
            return False
        self._agent.store.put(key, content(key, nbytes))
        return True

    def check(self, landings):
        """Load `(number, key, nbytes)`; the keys whose bytes are wrong."""
        return [
            key
            for number, key, nbytes in landings
            if not torch.equal(self._agent.load(number, key, CPU), content(key, nbytes))
        ]

    def state(self):
        return self._agent.store.state()

    def whole_pool_is_free(self):
        """Whether all pages can be had at once, and are given back."""
        store = self._agent.store
        had = store.claim([Claim("everything", store.capacity_bytes, "everything")]) is not None
        store.release("everything")
        return had and store.state().free_bytes == store.capacity_bytes

    def vitals(self):
        with open("/proc/self/maps") as maps:
            mappings = sum(" r--s " in line and "memfd:epd-pool" in line for line in maps)
        return Vitals(len(os.listdir("/proc/self/fd")), mappings)


def _main(pipe, agent_config, unreliable):
    if unreliable is not None:
        _mishear(random.Random(unreliable))
    agent = TransferAgent(agent_config)
    model = _Model(agent)
    pipe.send("ready")
    while True:
        try:
            what, arguments = pipe.recv()
        except EOFError:
            return
        if what == "stop":
            agent.close()
            return
        pipe.send(getattr(model, what)(*arguments))


def _mishear(chance):
    """Lose some of what a consumer tells its producers, and say some of it twice."""
    tell = Connection.tell

    async def tell_or_not(self, request):
        for _ in range(chance.choices([0, 1, 2, 3], [3, 90, 6, 1])[0]):
            await tell(self, request)

    Connection.tell = tell_or_not
