# SPDX-License-Identifier: Apache-2.0
"""A first request, for the user to copy."""

import base64
import json
import shlex
import struct
import zlib
from collections.abc import Mapping
from typing import Any

SIDE = 64
COLOUR = bytes((200, 60, 40))


def curl_command(url: str, model: str, with_image: bool) -> str:
    """A chat request, with a small picture where the topology takes pictures."""
    text = {"type": "text", "text": "What is in this picture?" if with_image else "Say hello."}
    content: list[Mapping[str, Any]] = [text]
    if with_image:
        data = base64.b64encode(plain_png()).decode()
        content.insert(0, {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{data}"}})
    body = {"model": model, "max_tokens": 16, "messages": [{"role": "user", "content": content}]}
    return f"curl {url}/v1/chat/completions -H 'Content-Type: application/json' -d {shlex.quote(json.dumps(body))}"


def plain_png() -> bytes:
    """A square of one colour; written by hand because it is short that way, and short enough for a command line."""
    header = struct.pack(">IIBBBBB", SIDE, SIDE, 8, 2, 0, 0, 0)
    pixels = zlib.compress((b"\0" + COLOUR * SIDE) * SIDE, 9)
    chunks = ((b"IHDR", header), (b"IDAT", pixels), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(_chunk(kind, data) for kind, data in chunks)


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
