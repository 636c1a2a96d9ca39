# SPDX-License-Identifier: Apache-2.0
"""NIXL alone: two agents, a READ each time, polled without a pause."""

import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

import msgspec

from tests.bench.errors import BenchError
from tests.bench.transfer.variants.base import Reader, Source
from tests.bench.transfer.variants.places import Rounds, source_region, target_region


class _Description(msgspec.Struct):
    agent: bytes
    base: int


@dataclass(slots=True)
class _NixlSource:
    agent: Any
    description: bytes
    has_thread: bool

    def progress(self) -> None:
        if not self.has_thread:
            self.agent.get_new_notifs()


@dataclass(frozen=True, slots=True)
class BareNixl:
    """With its progress thread, as NIXL's defaults have it, or without one."""

    name: str
    progress_thread: bool

    def missing(self) -> str:
        return "" if importlib.util.find_spec("nixl") else "nixl is not installed"

    @contextmanager
    def open_source(self) -> Iterator[Source]:
        agent, region = self._agent(), source_region("cpu")
        registered = agent.register_memory(region.tensor)
        description = _Description(agent.get_agent_metadata(), region.tensor.data_ptr())
        yield _NixlSource(agent, msgspec.msgpack.encode(description), self.progress_thread)
        agent.deregister_memory(registered)

    @contextmanager
    def open_reader(self, description: bytes) -> Iterator[Reader]:
        remote = msgspec.msgpack.decode(description, type=_Description)
        agent, region = self._agent(), target_region("cpu")
        registered = agent.register_memory(region.tensor)
        peer, base = agent.add_remote_agent(remote.agent), region.tensor.data_ptr()

        def move(there: int, here: int, nbytes: int) -> None:
            local = agent.get_xfer_descs([(base + here, nbytes, 0)], mem_type="DRAM")
            far = agent.get_xfer_descs([(remote.base + there, nbytes, 0)], mem_type="DRAM")
            handle = agent.initialize_xfer("READ", local, far, peer)
            state = agent.transfer(handle)
            while state == "PROC":
                state = agent.check_xfer_state(handle)
            agent.release_xfer_handle(handle)
            if state != "DONE":
                raise BenchError(f"NIXL READ ended in state {state}")

        yield Rounds(region.tensor, move)
        agent.remove_remote_agent(peer)
        agent.deregister_memory(registered)

    def _agent(self) -> Any:
        from nixl._api import nixl_agent, nixl_agent_config

        config = nixl_agent_config() if self.progress_thread else nixl_agent_config(enable_prog_thread=False)
        return nixl_agent(f"bench-{uuid4().hex}", config)
