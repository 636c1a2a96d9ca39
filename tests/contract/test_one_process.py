# SPDX-License-Identifier: Apache-2.0
"""What every transport promises, as far as one process can tell."""

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.contract.kinds import KINDS, NBYTES, bytes_of, owned_bytes
from tests.contract.sides import finish
from vllm_epd.errors import PeerError, TransferError
from vllm_epd.transfer.base import Peer
from vllm_epd.transfer.pool import Span

PAGE = 4096
WHOLE = [Span(0, NBYTES)]


def test_a_region_is_registered_once(own):
    transport, region = own
    transport.register(region)
    with pytest.raises(TransferError, match="once"):
        transport.register(region)


def test_before_a_region_is_registered_there_is_nothing_to_describe_or_to_read(own, linked):
    transport, _ = own
    for use in (
        transport.describe,
        lambda: transport.connect(linked.owner.description),
        lambda: transport.read(linked.peer, WHOLE, WHOLE),
    ):
        with pytest.raises(TransferError, match="register a region first"):
            use()


@pytest.mark.parametrize("garbage", [b"", b"\xc1", b"garbage", b"\x80"])
def test_garbage_for_a_description_is_the_peers_fault(linked, garbage):
    with pytest.raises(PeerError):
        linked.transport.connect(garbage)


def test_part_of_a_description_or_another_transports_is_refused(linked):
    description = linked.owner.description
    others = [kind for kind in KINDS if kind.transport != linked.kind.transport and not kind.missing()]
    foreign = []
    for other in others:
        transport, region = other.make(), other.region()
        transport.register(region)
        foreign.append(transport.describe())
        transport.close()
        region.close()
    assert foreign or not others
    for bad in (description[:-1], description[: len(description) // 2], *foreign):
        with pytest.raises(PeerError):
            linked.transport.connect(bad)


@pytest.mark.parametrize(
    "bad",
    [Span(-1, 2), Span(-PAGE, PAGE), Span(NBYTES - 1, 2), Span(NBYTES, 1), Span(NBYTES + PAGE, 1), Span(0, NBYTES + 1)],
    ids=str,
)
def test_no_span_reaches_out_of_its_region(linked, bad):
    good = Span(0, bad.length) if bad.length <= NBYTES else Span(0, NBYTES)
    for remote, local in (([bad], [good]), ([good], [bad]), ([good, bad], [good, good])):
        with pytest.raises(TransferError, match="outside a region"):
            linked.transport.read(linked.peer, remote, local)


@pytest.mark.parametrize("bad", [Span(0, 0), Span(PAGE, -1)], ids=str)
def test_no_span_is_empty_or_negative(linked, bad):
    for remote, local in (([bad], [bad]), ([Span(0, 8), bad], [Span(0, 8)]), ([Span(0, 8)], [Span(0, 8), bad])):
        with pytest.raises(TransferError, match="outside a region"):
            linked.transport.read(linked.peer, remote, local)


@pytest.mark.parametrize(
    ("remote", "local"),
    [([Span(0, 8)], [Span(0, 9)]), ([Span(0, 8), Span(8, 8)], [Span(0, 8)]), ([], [Span(0, 8)]), ([Span(0, 8)], [])],
)
def test_both_sides_have_the_same_length(linked, remote, local):
    with pytest.raises(TransferError, match="total length"):
        linked.transport.read(linked.peer, remote, local)


def test_the_whole_region_arrives(linked):
    assert np.array_equal(linked.copy(WHOLE, WHOLE), owned_bytes())


@st.composite
def cut(draw):
    """Pieces of the same total length for both sides, cut differently, in any order; local ones do not overlap."""
    pages = draw(st.lists(st.integers(0, NBYTES // PAGE - 1), min_size=1, max_size=12, unique=True))
    local = []
    for page in pages:
        start = draw(st.integers(0, PAGE - 1))
        local.append(Span(page * PAGE + start, draw(st.integers(1, PAGE - start))))
    left, remote = sum(span.length for span in local), []
    while left:
        length = draw(st.integers(1, left)) if len(remote) < 8 else left
        remote.append(Span(draw(st.integers(0, NBYTES - length)), length))
        left -= length
    return remote, local


@given(cut())
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_spans_may_be_cut_differently_on_both_sides(linked, spans):
    remote, local = spans
    moved = np.concatenate([owned_bytes()[there.offset : there.offset + there.length] for there in remote])
    expected, done = np.zeros(NBYTES, dtype=np.uint8), 0
    for here in local:
        expected[here.offset : here.offset + here.length] = moved[done : done + here.length]
        done += here.length
    assert np.array_equal(linked.copy(remote, local), expected)


def test_many_reads_are_under_way_at_once(linked):
    linked.region.tensor.zero_()
    spans = [Span(offset, PAGE) for offset in range(0, NBYTES, PAGE)]
    mirrored = spans[::-1]
    reads = [linked.transport.read(linked.peer, [there], [here]) for there, here in zip(spans, mirrored, strict=True)]
    for read in reads[1::2] + reads[::2]:
        finish(read, linked.owner)
    landed = linked.region.tensor.cpu().numpy().reshape(-1, PAGE)
    assert np.array_equal(landed[::-1].ravel(), owned_bytes())


def test_a_read_that_is_over_may_be_closed_twice(linked):
    read = linked.transport.read(linked.peer, WHOLE, WHOLE)
    finish(read, linked.owner)
    read.close()
    assert np.array_equal(bytes_of(linked.region), owned_bytes())


def test_a_closed_peer_is_not_read_from(linked):
    peer = linked.transport.connect(linked.owner.description)
    peer.close()
    peer.close()
    with pytest.raises(TransferError):
        linked.transport.read(peer, WHOLE, WHOLE)


def test_a_closed_peer_leaves_other_connections_to_its_owner_alone(linked, own):
    transport, region = own
    transport.register(region)
    transport.connect(linked.owner.description).close()
    assert np.array_equal(linked.copy(WHOLE, WHOLE), owned_bytes())


class ForeignPeer(Peer):
    def close(self):
        pass


def test_a_peer_of_another_transport_is_refused(linked):
    with pytest.raises(TransferError, match="its own peers, not from ForeignPeer"):
        linked.transport.read(ForeignPeer(), WHOLE, WHOLE)


def test_after_close_nothing_can_be_done_and_a_second_close_does_nothing(own, linked):
    transport, region = own
    transport.register(region)
    transport.close()
    transport.close()
    for use in (
        lambda: transport.register(region),
        transport.describe,
        lambda: transport.connect(linked.owner.description),
        lambda: transport.read(linked.peer, WHOLE, WHOLE),
    ):
        with pytest.raises(TransferError):
            use()
    assert region.nbytes == NBYTES
