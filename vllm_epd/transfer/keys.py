# SPDX-License-Identifier: Apache-2.0
"""Under which key an embedding is known everywhere: a digest of all that decides its bytes and who may share it."""

import hashlib
from collections.abc import Mapping

PREFIX = "epd-"


def content_key(item: str, fingerprint: Mapping[str, str], lora_path: str | None, cache_salt: str | None) -> str:
    """The content key of one media item.

    Args:
        item: digest of the media bytes and the processor's arguments.
        fingerprint: of the instance that encodes it.
        lora_path: of the adapter that the request runs with; its name may come to mean another one.
        cache_salt: of the request; requests of different salts share nothing.
    """
    digest = hashlib.sha256()
    for piece in (item, *(f"{name}={fingerprint[name]}" for name in sorted(fingerprint)), lora_path, cache_salt):
        data = b"" if piece is None else piece.encode()
        digest.update((-1 if piece is None else len(data)).to_bytes(8, "little", signed=True))
        digest.update(data)
    return PREFIX + digest.hexdigest()[:48]


def part_key(item: str, index: int, count: int) -> str:
    """The key of one part of an item that is encoded as `count` parts, in order."""
    return f"{item}:{index}/{count}"
