# SPDX-License-Identifier: Apache-2.0
"""Pictures to send, no two of them alike, so that no cache of a server helps."""

import base64
import struct
import zlib

import numpy as np
from numpy.random import Generator

BLOCK = 16
"""Side in pixels of an area of one colour, before the noise."""

NOISE = 2
"""Values by which a pixel departs from it."""


def picture(rng: Generator, width: int, height: int) -> bytes:
    """A PNG of coloured blocks with fine noise: two bits of a pixel's colour cannot be compressed."""
    coarse = rng.integers(NOISE, 256 - NOISE, (-(-height // BLOCK), -(-width // BLOCK), 3))
    blocks = coarse.repeat(BLOCK, axis=0).repeat(BLOCK, axis=1)[:height, :width]
    pixels = (blocks + rng.integers(-NOISE, NOISE, blocks.shape)).astype(np.uint8)
    rows = np.concatenate([np.zeros((height, 1), np.uint8), pixels.reshape(height, -1)], axis=1)
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    body = zlib.compress(rows.tobytes(), 1)
    return b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", header) + _chunk(b"IDAT", body) + _chunk(b"IEND", b"")


def picture_url(rng: Generator, width: int, height: int) -> str:
    """The same as a URL of its data."""
    return "data:image/png;base64," + base64.b64encode(picture(rng, width, height)).decode()


def _chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
