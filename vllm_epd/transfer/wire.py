# SPDX-License-Identifier: Apache-2.0
"""Messages between two transfer agents, and between an agent and the processes of its own instance.

msgspec only, versioned, nothing executable. A frame that does not decode is an error of the sender's, never of the
reader's process.
"""

from typing import Any, TypeVar

import msgspec

from vllm_epd.errors import TransferError

T = TypeVar("T")

WIRE_VERSION = 4


class EmbeddingHandle(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Which embedding can be fetched from whom; travels through the router as an opaque JSON object.

    It names the producer and holds no address: that is looked up among the registered instances.

    Attributes:
        version: `WIRE_VERSION` of the producer.
        key: content key of the embedding.
        lease: id of the lease that keeps it for this consumer; acknowledged once.
        epoch: epoch of the producer; a restarted instance is another one.
        rank: data-parallel rank of the producer, whose agents hold it, each a part or the first one all of it.
        nbytes: size in bytes of what is read, which is encoded where the producer has a codec.
    """

    version: int
    key: str
    lease: str
    epoch: str
    rank: int
    nbytes: int


# Between agents: what a consumer sends.


class Hello(msgspec.Struct, frozen=True, tag=True):
    """First on a connection: who the consumer is and whom it expects.

    Attributes:
        version: `WIRE_VERSION` of the consumer.
        producer: epoch that the consumer expects to meet.
        consumer: the consumer's own epoch.
        fingerprint: of the consumer, `Fingerprint.to_mapping()`.
        content: what the consumer takes the items for, such as `embeddings`; both sides must mean the same.
        shard: which part of the items it wants, and of how many; (0, 1) for all of them.
        tiers: names of the transports that it can read over.
        nonce: random bytes that the producer proves the shared secret over.
    """

    version: int
    producer: str
    consumer: str
    fingerprint: dict[str, str]
    content: str
    shard: tuple[int, int]
    tiers: list[str]
    nonce: bytes


class Proof(msgspec.Struct, frozen=True, tag=True):
    """The consumer knows the shared secret: an HMAC over what both sides have said."""

    mac: bytes


class Fetch(msgspec.Struct, frozen=True, tag=True):
    """Ask for a grant to read `key` over the transport `tier`; with `wait`, as soon as it is there."""

    key: str
    tier: str
    wait: bool = False


class AskTransfer(msgspec.Struct, frozen=True, tag=True):
    """Ask which items belong to `transfer`, as soon as that is known."""

    transfer: str


class Done(msgspec.Struct, frozen=True, tag=True):
    """The read under `grant` is over; no answer."""

    grant: str


class Acknowledge(msgspec.Struct, frozen=True, tag=True):
    """The consumer needs the lease no more, having read or not; no answer."""

    lease: str


# Between agents: what a producer answers.


class Challenge(msgspec.Struct, frozen=True, tag=True):
    """The producer knows the shared secret, and asks for the consumer's proof over `nonce`."""

    version: int
    nonce: bytes
    mac: bytes


class Tier(msgspec.Struct, frozen=True):
    """One way to read from the producer: a transport and what it needs to connect."""

    name: str
    description: bytes


class Welcome(msgspec.Struct, frozen=True, tag=True):
    """The producer accepts the consumer."""

    epoch: str
    fingerprint: dict[str, str]
    tiers: list[Tier]


class Refused(msgspec.Struct, frozen=True, tag=True):
    """The producer does not talk to this consumer, and why."""

    reason: str


class Granted(msgspec.Struct, frozen=True, tag=True):
    """The bytes lie at `spans` (offset, length) of the producer's region for `grant_s` seconds from now.

    Attributes:
        shape: of the tensor.
        dtype: of the tensor, as torch names it.
        codec: that its bytes are encoded with.
        checksum: CRC-32 of the bytes; None where the producer computes none.
    """

    grant: str
    spans: list[tuple[int, int]]
    shape: list[int]
    dtype: str
    grant_s: float
    codec: str = "none"
    checksum: int | None = None


class Listed(msgspec.Struct, frozen=True, tag=True):
    """The items of a transfer: key and size in bytes of each, in order."""

    items: list[tuple[str, int]]


class Lost(msgspec.Struct, frozen=True, tag=True):
    """The producer does not hold what was asked for."""

    reason: str


# Within an instance: commands to an agent.


class Pull(msgspec.Struct, frozen=True, tag=True):
    """Bring this embedding here and keep it as `landing`."""

    landing: int
    handle: EmbeddingHandle


class Wanted(msgspec.Struct, frozen=True):
    """One item that a request wants offered: room for it under `lease`, or `landing` if it is held already.

    `nbytes` is its size as the encoder makes it; the answer says as what it will be offered.
    """

    landing: int
    key: str
    lease: str
    nbytes: int


class Reserve(msgspec.Struct, frozen=True, tag=True):
    """Make room for all items of a request at once, to be listed as `transfer` if named; answered when there is."""

    items: list[Wanted]
    transfer: str = ""


class Drop(msgspec.Struct, frozen=True, tag=True):
    """`landing` is needed no more, once it has been loaded `loads` times."""

    landing: int
    loads: int


class Release(msgspec.Struct, frozen=True, tag=True):
    """Acknowledge the lease of this handle to its producer."""

    handle: EmbeddingHandle


class Withdraw(msgspec.Struct, frozen=True, tag=True):
    """End these leases of this agent's own: nobody will come for them.

    Attributes:
        leases: what ends.
        landings: those of a reservation whose answer was not read: what was here for them is not needed either.
    """

    leases: list[str]
    landings: list[int] = []


class TakeLease(msgspec.Struct, frozen=True, tag=True):
    """Lease `key` to one more consumer, if it is held."""

    key: str
    lease: str


class Expect(msgspec.Struct, frozen=True, tag=True):
    """Bring the items of `transfer` here as they are made at `rank` of `epoch`: they will soon be wanted."""

    transfer: str
    epoch: str
    rank: int


class Forget(msgspec.Struct, frozen=True, tag=True):
    """What was expected of `transfer` is not wanted any more, or has been asked for; what is offered, by nobody."""

    transfer: str


class SetPeers(msgspec.Struct, frozen=True, tag=True):
    """The instances registered at the router: the addresses of their agents by epoch, in order of `Shard.agent`."""

    addresses: dict[str, list[str]]


class AskPool(msgspec.Struct, frozen=True, tag=True):
    """How full is the region, and what has passed through it?"""


# Within an instance: reports of an agent.


class Pulled(msgspec.Struct, frozen=True, tag=True):
    """The embedding is here."""

    landing: int


class PullFailed(msgspec.Struct, frozen=True, tag=True):
    """It cannot be had."""

    landing: int
    reason: str


class Reserved(msgspec.Struct, frozen=True, tag=True):
    """There is room for the request whose first item is `landing`.

    Attributes:
        held: landings of the items that are here already.
        sizes: of all items, in order, in bytes as they are offered.
    """

    landing: int
    held: list[int]
    sizes: list[int]


class ReserveFailed(msgspec.Struct, frozen=True, tag=True):
    """There is no room for the request whose first item is `landing`."""

    landing: int
    reason: str


class LeaseTaken(msgspec.Struct, frozen=True, tag=True):
    """Answer to TakeLease: the size of the item, None where it is not held."""

    nbytes: int | None


class PoolState(msgspec.Struct, frozen=True, tag=True):
    """An agent's region now, and counts since its start.

    Attributes:
        capacity_bytes: of all pages.
        free_bytes: in pages that belong to no item.
        items: embeddings held.
        pinned: those among them that a lease, a grant or a landing holds.
        pinned_bytes: the size of these.
        hits: embeddings wanted that were held already.
        encoded: embeddings put in by this instance's encoder.
        raw_bytes: the size of these, as the encoder made them.
        stored_bytes: the size of these, as they were put in.
        fetched: embeddings brought in from peers.
        fetched_bytes: the size of these.
        evicted: embeddings that made room for others.
        expired: leases and grants that ran out.
        refused: peers that were not let in.
        tiers: transports that started, best first.
        codec: that this instance is to encode its embeddings with.
        codec_state: `off`, `trial`, `active` or `refused`.
        codec_error: the largest relative error of a row that was measured.
    """

    capacity_bytes: int
    free_bytes: int
    items: int
    pinned: int
    pinned_bytes: int
    hits: int
    encoded: int
    raw_bytes: int
    stored_bytes: int
    fetched: int
    fetched_bytes: int
    evicted: int
    expired: int
    refused: int = 0
    tiers: list[str] = []
    codec: str = "none"
    codec_state: str = "off"
    codec_error: float = 0.0

    @property
    def codec_active(self) -> int:
        """1 while embeddings are encoded, otherwise 0."""
        return int(self.codec_state == "active")

    @property
    def codec_refused(self) -> int:
        """1 once the codec has been refused, otherwise 0."""
        return int(self.codec_state == "refused")


Request = Hello | Proof | Fetch | AskTransfer | Done | Acknowledge
Reply = Challenge | Welcome | Refused | Granted | Listed | Lost
Command = Pull | Reserve | Drop | Release | Withdraw | TakeLease | Expect | Forget | SetPeers | AskPool
Report = Pulled | PullFailed | Reserved | ReserveFailed | LeaseTaken | PoolState

_encoder = msgspec.msgpack.Encoder()
_requests: msgspec.msgpack.Decoder[Request] = msgspec.msgpack.Decoder(Request)
_replies: msgspec.msgpack.Decoder[Reply] = msgspec.msgpack.Decoder(Reply)
_commands: msgspec.msgpack.Decoder[Command] = msgspec.msgpack.Decoder(Command)
_reports: msgspec.msgpack.Decoder[Report] = msgspec.msgpack.Decoder(Report)


def encode(message: Request | Reply | Command | Report) -> bytes:
    """One message as bytes."""
    return _encoder.encode(message)


def decode_request(data: bytes) -> Request:
    """Read what a consumer sends; TransferError when it is none of its messages."""
    _check_version(data)
    return _decode(_requests, data)


def decode_reply(data: bytes) -> Reply:
    """Read what a producer answers; TransferError when it is none of its messages."""
    return _decode(_replies, data)


def decode_command(data: bytes) -> Command:
    """Read what an agent is told by its own instance; TransferError when it is none of these messages."""
    return _decode(_commands, data)


def decode_report(data: bytes) -> Report:
    """Read what an agent reports; TransferError when it is none of its messages."""
    return _decode(_reports, data)


def handle_from_json(data: Any) -> EmbeddingHandle:
    """Read a handle out of `ec_transfer_params`.

    Raises:
        TransferError: not a handle, or one of another wire version.
    """
    try:
        handle = msgspec.convert(data, EmbeddingHandle)
    except msgspec.ValidationError as error:
        raise TransferError(f"bad embedding handle: {error}") from error
    if handle.version != WIRE_VERSION:
        raise TransferError(f"embedding handle of wire version {handle.version}, expected {WIRE_VERSION}")
    if handle.rank < 0 or handle.nbytes <= 0:
        raise TransferError(f"bad embedding handle: rank {handle.rank}, {handle.nbytes} bytes")
    return handle


class _AnyHello(msgspec.Struct, tag="Hello"):
    """A Hello of whatever version."""

    version: int


_any_hello = msgspec.msgpack.Decoder(_AnyHello)


def _check_version(data: bytes) -> None:
    """A Hello of another version does not decode as one of this; say why."""
    try:
        version = _any_hello.decode(data).version
    except msgspec.DecodeError:
        return
    if version != WIRE_VERSION:
        raise TransferError(f"wire version {version}, this instance speaks {WIRE_VERSION}")


def _decode(decoder: msgspec.msgpack.Decoder[T], data: bytes) -> T:
    try:
        return decoder.decode(data)
    except msgspec.DecodeError as error:
        raise TransferError(f"undecodable message of {len(data)} bytes: {error}") from error
