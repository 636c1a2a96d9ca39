# SPDX-License-Identifier: Apache-2.0
"""The transports under test, one after the other."""

from collections.abc import Iterator
from dataclasses import dataclass

import pytest

pytest.importorskip("torch")

from tests.contract.kinds import KINDS, Kind, bytes_of
from tests.contract.sides import LocalOwner, RemoteOwner, finish
from vllm_epd.transfer.base import Peer, Transport
from vllm_epd.transfer.region import Region


@pytest.fixture(scope="module", params=KINDS, ids=str)
def kind(request) -> Kind:
    if missing := request.param.missing():
        pytest.skip(missing)
    return request.param


@dataclass(frozen=True, slots=True)
class Linked:
    """A reader with its own region, connected to an owner."""

    kind: Kind
    owner: LocalOwner | RemoteOwner
    transport: Transport
    region: Region
    peer: Peer

    def copy(self, remote, local):
        """The whole of the reader's region after a read into zeros."""
        self.region.tensor.zero_()
        finish(self.transport.read(self.peer, remote, local), self.owner)
        return bytes_of(self.region)


@pytest.fixture(scope="module")
def linked(kind) -> Iterator[Linked]:
    owner = LocalOwner(kind) if kind.in_one_process else RemoteOwner(kind)
    transport, region = kind.make(), kind.region()
    transport.register(region)
    peer = transport.connect(owner.description)
    yield Linked(kind, owner, transport, region, peer)
    peer.close()
    transport.close()
    region.close()
    owner.end()


@pytest.fixture
def own(kind):
    """A transport with nothing registered yet, and a region for it."""
    transport, region = kind.make(), kind.region()
    yield transport, region
    transport.close()
    region.close()
