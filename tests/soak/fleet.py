# SPDX-License-Identifier: Apache-2.0
"""Two producer and two consumer processes, of which one each is killed and replaced while they work."""

import os
from pathlib import Path
from uuid import uuid4

from tests.unit.transfer.parties import new_address
from tests.unit.transfer.worker import Worker
from vllm_epd.transfer import wire

GRANT_S = 3.0
POOL_BYTES = 48 << 20


class Slot:
    """A place in the fleet: one process after another."""

    def __init__(self, context, chance, transport, mortal):
        self._context = context
        self._chance = chance
        self._transport = transport
        self._address = new_address()
        self.mortal = mortal
        self.start()

    def start(self):
        """A new process, at the address of the last one or at another."""
        if self._chance.random() < 0.5:
            self._address = new_address()
        self.worker = Worker(
            self._context,
            unreliable=self._chance.randrange(2**32),
            epoch=f"{self._transport}-{uuid4().hex}",
            transport=self._transport,
            listen=self._address,
            pool_bytes=POOL_BYTES,
            timeout_s=GRANT_S,
        )

    @property
    def is_ready(self):
        return self.worker.poll_ready()


class Fleet:
    """The slots, and who knows of whom."""

    def __init__(self, context, chance, lasting_transport):
        other = {"shm": "nixl", "nixl": "shm"}[lasting_transport]
        self.producers = [Slot(context, chance, "auto", mortal) for mortal in (False, True)]
        self.consumers = [
            Slot(context, chance, lasting_transport, mortal=False),
            Slot(context, chance, other, mortal=True),
        ]
        for slot in self.slots:
            slot.worker.wait_ready()

    @property
    def slots(self):
        return [*self.producers, *self.consumers]

    def introduce(self):
        """Tell all consumers who is there, as the router does."""
        peers = {slot.worker.epoch: [slot.worker.config.listen] for slot in self.producers if slot.is_ready}
        for slot in self.consumers:
            slot.worker.tell(wire.SetPeers(peers))

    def part(self):
        """Tell all consumers that nobody is there any more."""
        for slot in self.consumers:
            slot.worker.tell(wire.SetPeers({}))

    def stop(self):
        for slot in self.slots:
            slot.worker.stop()


class MachineTraces:
    """What processes may leave behind on a machine when they are killed."""

    def __init__(self):
        self._before = self._now()

    def left(self):
        """What was not there before and nobody has open."""
        new = self._now() - self._before
        return {name for name in new if name.startswith("sysv") or name not in _opened()}

    def _now(self):
        segments = Path("/proc/sysvipc/shm").read_text().splitlines()[1:]
        return {f"sysv {line.split()[1]}" for line in segments if line.split()[6] == "0"} | {
            f"/dev/shm/{name}" for name in os.listdir("/dev/shm")
        }


def _opened():
    """Names under /dev/shm that a living process has open or mapped."""
    names = set()
    for process in Path("/proc").glob("[0-9]*"):
        try:
            names |= {os.readlink(each) for each in (process / "fd").iterdir()}
            names |= {line.split()[-1] for line in (process / "maps").read_text().splitlines() if "/dev/shm/" in line}
        except OSError:  # it has ended meanwhile
            continue
    return names
