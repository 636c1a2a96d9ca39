# SPDX-License-Identifier: Apache-2.0
"""Frames that no honest agent sends: noise, broken messages, and well-formed ones full of lies."""

import math

import msgspec
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from vllm_epd.transfer import wire

NESTED = 100_000
PROFILE = settings(
    derandomize=True, deadline=None, database=None, suppress_health_check=list(HealthCheck), print_blob=False
)

_pack = msgspec.msgpack.encode

INTEGERS = st.sampled_from([0, 1, -1, 2**31, 2**63 - 1, -(2**63), 2**64 - 1]) | st.integers(-(2**40), 2**40)
NUMBERS = INTEGERS | st.sampled_from([math.nan, math.inf, -math.inf, -1.0, 1e300]) | st.floats()
SCALARS = st.none() | st.booleans() | NUMBERS | st.text(max_size=20) | st.binary(max_size=40)
VALUES = st.recursive(SCALARS, lambda each: st.lists(each, max_size=4) | st.dictionaries(st.text(max_size=5), each))


def _lies(kinds, honest):
    """Messages of these types, each field either as in `honest` or replaced by something else, some left out."""

    def fields(kind):
        chosen = {
            name: st.sampled_from(honest[name]) | VALUES if name in honest else VALUES
            for name in kind.__struct_fields__
        }
        return st.fixed_dictionaries({}, optional=chosen).map(lambda found: {"type": kind.__name__, **found}) | (
            st.fixed_dictionaries(chosen).map(lambda found: {"type": kind.__name__, **found})
        )

    return st.sampled_from(kinds).flatmap(fields).map(_pack)


def _mutated(frames):
    """Valid frames cut short, or with a byte changed."""
    cut = st.tuples(frames, st.integers(0, 40)).map(lambda each: each[0][: each[1]])
    flipped = st.tuples(frames, st.integers(0, 200), st.integers(0, 255)).map(_flip)
    return cut | flipped


def _flip(each):
    frame, place, value = each
    return frame[: place % len(frame)] + bytes([value]) + frame[place % len(frame) + 1 :]


DEEP = st.sampled_from(
    [
        b"\x91" * NESTED,
        b"\x82\xa4type\xa5Fetch\xa1x" + b"\x91" * NESTED + b"\xc0",
        b"\x82\xa4type\xa5Hello\xa1x" + b"\x81\xa1a" * NESTED + b"\xc0",
        b"\x82\xa4type\xa7Granted\xa1x" + b"\x91" * NESTED + b"\xc0",
        b"\x82\xa4type\xa4Pull\xa1x" + b"\x91" * NESTED + b"\xc0",
    ]
)
NOISE = st.sampled_from(
    [
        b"",
        b"\xc1",
        b"\xdd\xff\xff\xff\xff",
        b"\x82\xa4type\xa5Fetch\xa3key\xa2\xff\xfe",
        b"\x81\xa4type\xa2\xff\xfe",
        b"\x82\xa4type\xa7Granted\xa5spans\xdd\x7f\xff\xff\xff",
    ]
) | st.binary(max_size=200)
WRONG_TAGS = st.tuples(VALUES, VALUES).map(lambda each: _pack({"type": each[0], "key": each[1]}))

STRANGE_NAMES = ["k", "", "unknown", "lease-k", "landing-1", "copy-1", "grant-1", "\0", "k" * 10_000]
STRANGE_SHAPES = [[], [0], [-1], [2**62, 4], [2**63 - 1] * 2000, [1] * 5000, [256], [16, 16], [-16, -16]]
STRANGE_SPANS = [
    [],
    [[0, 256]],
    [[0, -256]],
    [[-256, 256]],
    [[2**63 - 1, 256]],
    [[0, 2**63 - 1]],
    [[0, 512], [0, -256]],
    [[0, 128]] * 2,
    [[0, 0], [0, 256]],
    [[0, 1]] * 256,
    [[2**40, 256]],
]
HONEST = {
    "version": [wire.WIRE_VERSION],
    "producer": ["producer", ""],
    "consumer": ["consumer"],
    "fingerprint": [{}, {"weights": "w"}],
    "tiers": [["shm"], [], [{"name": "shm", "description": b""}], [{"name": "shm", "description": b"\x82" * 9}]],
    "nonce": [b"\0" * 16, b""],
    "mac": [b"\0" * 32],
    "key": STRANGE_NAMES,
    "tier": ["shm", "nixl", ""],
    "grant": STRANGE_NAMES,
    "lease": STRANGE_NAMES,
    "spans": STRANGE_SPANS,
    "shape": STRANGE_SHAPES,
    "dtype": ["uint8", "nn", "__class__", "_dynamo", "float64", "quint8", ""],
    "codec": ["none", "fp8", "int8", "zip", ""],
    "checksum": [None, 0, -1, 2**63],
    "grant_s": [20.0, math.nan, -1.0, 0.0, math.inf, 1e-300],
    "epoch": ["producer"],
    "reason": ["because"],
    "landing": [0, 1, -1],
    "loads": [0, -1, 2**62],
    "handle": [
        {"version": wire.WIRE_VERSION, "key": "k", "lease": "l", "epoch": "e", "rank": rank, "nbytes": nbytes}
        for rank in (0, -1)
        for nbytes in (256, 0, -1, 2**62)
    ],
    "items": [
        [],
        [{"landing": 1, "key": "k", "lease": "l", "nbytes": 100}],
        [
            {"landing": 1, "key": "k", "lease": "l", "nbytes": 100},
            {"landing": 2, "key": "j", "lease": "l", "nbytes": 9},
        ],
        [{"landing": 1, "key": "k", "lease": "l", "nbytes": -100}],
        [{"landing": 1, "key": "k", "lease": "l", "nbytes": 2**62}],
    ],
    "leases": [["l"], [], ["unknown"] * 100],
    "addresses": [{}, {"e": []}, {"e": ["nonsense"]}, {"e": ["tcp://127.0.0.1:9"]}],
}

REQUESTS = (wire.Hello, wire.Proof, wire.Fetch, wire.Done, wire.Acknowledge)
REPLIES = (wire.Challenge, wire.Welcome, wire.Refused, wire.Granted, wire.Lost)
COMMANDS = (wire.Pull, wire.Reserve, wire.Drop, wire.Release, wire.Withdraw, wire.TakeLease, wire.SetPeers)


def _frames(kinds):
    lies = _lies(kinds, HONEST)
    return lies | _mutated(lies) | NOISE | WRONG_TAGS | DEEP


REQUEST_FRAMES = _frames(REQUESTS)
REPLY_FRAMES = _frames(REPLIES)
GRANT_FRAMES = _lies((wire.Granted,), HONEST)
COMMAND_FRAMES = _frames(COMMANDS)
