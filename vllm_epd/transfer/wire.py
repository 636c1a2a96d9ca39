# SPDX-License-Identifier: Apache-2.0
"""Messages between two transfer agents, and between an agent and the scheduler half beside it.

msgspec only, versioned, nothing executable. A frame that does not decode is an error of the sender's, never of the
reader's process.
"""

from typing import Any, TypeVar

import msgspec

from vllm_epd.errors import TransferError

T = TypeVar("T")

WIRE_VERSION = 1


class EmbeddingHandle(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Where an embedding can be fetched; travels through the router as an opaque JSON object.

    Attributes:
        version: `WIRE_VERSION` of the producer.
        key: content key of the embedding.
        lease: id of the lease that keeps it for this consumer; acknowledged once.
        peer: ZeroMQ address of the producer's agent.
        epoch: epoch of the producer; another epoch at that address is another instance.
        nbytes: size in bytes, 0 when the producer did not know it in advance.
    """

    version: int
    key: str
    lease: str
    peer: str
    epoch: str
    nbytes: int = 0


class Hello(msgspec.Struct, frozen=True, tag=True):
    """Consumer to producer, first on a connection."""

    version: int
    epoch: str
    fingerprint: dict[str, str]
    transport: str


class Welcome(msgspec.Struct, frozen=True, tag=True):
    """The producer accepts; `description` is what its transport needs to be read from."""

    version: int
    epoch: str
    fingerprint: dict[str, str]
    transport: str
    description: bytes


class Refused(msgspec.Struct, frozen=True, tag=True):
    """The producer does not talk to this consumer, and why."""

    reason: str


class Fetch(msgspec.Struct, frozen=True, tag=True):
    """Ask for a grant to read `key`."""

    key: str


class Granted(msgspec.Struct, frozen=True, tag=True):
    """The bytes lie at `spans` (offset, length) of the producer's region for `grant_s` seconds from now."""

    grant: str
    spans: list[tuple[int, int]]
    shape: list[int]
    dtype: str
    grant_s: float


class Lost(msgspec.Struct, frozen=True, tag=True):
    """The producer does not hold what was asked for."""

    reason: str


class Done(msgspec.Struct, frozen=True, tag=True):
    """The read under `grant` is over; no answer."""

    grant: str


class Acknowledge(msgspec.Struct, frozen=True, tag=True):
    """The consumer needs the lease no more, having read or not; no answer."""

    lease: str


class Pull(msgspec.Struct, frozen=True, tag=True):
    """Scheduler half to its own agents: bring this embedding here, to be known as `landing`."""

    landing: int
    handle: EmbeddingHandle


class Pulled(msgspec.Struct, frozen=True, tag=True):
    """An agent to its scheduler half: the embedding is here, `nbytes` long."""

    landing: int
    nbytes: int


class PullFailed(msgspec.Struct, frozen=True, tag=True):
    """An agent to its scheduler half: it cannot be had."""

    landing: int
    reason: str


class Release(msgspec.Struct, frozen=True, tag=True):
    """Scheduler half to one of its agents: acknowledge the lease of this handle to its producer."""

    handle: EmbeddingHandle


class AskPool(msgspec.Struct, frozen=True, tag=True):
    """Anyone beside an agent: how full is its region?"""


class PoolState(msgspec.Struct, frozen=True, tag=True):
    """An agent's region: bytes in all and in free pages; items held, and those that a lease or a grant holds."""

    capacity_bytes: int
    free_bytes: int
    items: int
    pinned: int


Request = Hello | Fetch | Done | Acknowledge
Reply = Welcome | Refused | Granted | Lost
Command = Pull | Release | AskPool
Report = Pulled | PullFailed | PoolState

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
    return _decode(_requests, data)


def decode_reply(data: bytes) -> Reply:
    """Read what a producer answers; TransferError when it is none of its messages."""
    return _decode(_replies, data)


def decode_command(data: bytes) -> Command:
    """Read what a scheduler half sends; TransferError when it is none of its messages."""
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
    return handle


def _decode(decoder: msgspec.msgpack.Decoder[T], data: bytes) -> T:
    try:
        return decoder.decode(data)
    except msgspec.DecodeError as error:
        raise TransferError(f"undecodable message of {len(data)} bytes: {error}") from error
