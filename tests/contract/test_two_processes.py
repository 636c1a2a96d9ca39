# SPDX-License-Identifier: Apache-2.0
"""What every transport promises when the owner is another process, and when that process goes away."""

from pathlib import Path

import pytest

from tests.contract.kinds import NBYTES, bytes_of, owned_bytes
from tests.contract.sides import Child, RemoteOwner, finish, outlive
from vllm_epd.transfer.pool import Span

WHOLE = [Span(0, NBYTES)]
SHARED = Path("/dev/shm")


def refused(kind, outcome):
    """Whether connecting was refused; NIXL connects when it first reads."""
    return outcome.startswith("PeerError") or (kind.transport == "nixl" and outcome == "connected: TransferError")


@pytest.fixture
def owner(kind):
    owner = RemoteOwner(kind)
    yield owner
    owner.end()


def test_bytes_come_from_another_process(own, owner):
    transport, region = own
    transport.register(region)
    peer = transport.connect(owner.description)
    finish(transport.read(peer, WHOLE, WHOLE))
    assert (bytes_of(region) == owned_bytes()).all()
    peer.close()


def test_a_reader_outlives_an_owner_that_is_killed(kind):
    before = set(SHARED.iterdir())
    owner = RemoteOwner(kind)
    reader = Child(outlive, kind, owner.description)
    assert reader.ask() == "bytes"
    owner.kill()
    assert reader.ask("killed") in ("bytes", "TransferError")
    assert refused(kind, reader.ask("connect again"))
    reader.ask()
    assert reader.end() == 0
    assert set(SHARED.iterdir()) <= before


def test_a_reader_outlives_an_owner_that_closes(kind, owner):
    reader = Child(outlive, kind, owner.description)
    assert reader.ask() == "bytes"
    owner.close()
    assert reader.ask("closed") in ("bytes", "TransferError")
    assert refused(kind, reader.ask("connect again"))
    reader.ask()
    assert reader.end() == 0
    assert owner.end() == 0
