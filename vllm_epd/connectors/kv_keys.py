# SPDX-License-Identifier: Apache-2.0
"""How the KV cache of a prompt is cut into pieces that travel, and what each is called. Pure."""

import hashlib
from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

PREFIX = "kv-"


class Item(NamedTuple):
    """A media item of the prompt: its content key, and the first token of its placeholder."""

    key: str
    offset: int


@dataclass(frozen=True, slots=True)
class ChunkShape:
    """How prompts are cut: P and D cut alike, or they know no chunk of each other.

    Attributes:
        block_tokens: tokens of one KV block.
        block_bytes: bytes of one KV block, all layers together.
        chunk_blocks: blocks of every chunk but the last one of a prompt.
    """

    block_tokens: int
    block_bytes: int
    chunk_blocks: int

    @property
    def chunk_tokens(self) -> int:
        """Tokens of a full chunk."""
        return self.block_tokens * self.chunk_blocks

    def start(self, chunk: "Chunk") -> int:
        """The first token of a chunk."""
        return chunk.first_block * self.block_tokens

    def nbytes(self, tokens: int) -> int:
        """What the KV cache of so many tokens takes up, in whole blocks."""
        return -(-tokens // self.block_tokens) * self.block_bytes


@dataclass(frozen=True, slots=True)
class Chunk:
    """Neighbouring blocks of one prompt.

    Attributes:
        key: names the content: the same for every prompt that begins with the same tokens, media, adapter and salt.
        first_block: index of its first block among those of the prompt.
        blocks: how many blocks it has.
        end: the token after its last one.
        nbytes: size of its blocks, all layers together.
    """

    key: str
    first_block: int
    blocks: int
    end: int
    nbytes: int

    def blocks_of(self, block_ids: Sequence[int], skip: int = 0) -> tuple[int, ...]:
        """Its blocks among those of the prompt, but for the first `skip`."""
        return tuple(block_ids[self.first_block + skip : self.first_block + self.blocks])


def cut(
    tokens: Sequence[int], items: Iterable[Item], circumstances: Iterable[str | None], shape: ChunkShape
) -> list[Chunk]:
    """The chunks of a prompt, in order.

    A key covers all tokens up to the end of its chunk, as attention does, and nothing after it.

    Args:
        tokens: ids of the prompt; those at the place of media mean nothing by themselves.
        items: media of the prompt.
        circumstances: what else decides the cache: adapter, salt and the like, always in the same order.
        shape: how to cut.
    """
    digest = hashlib.sha256()
    for word in circumstances:
        _feed(digest, b"" if word is None else b"+" + word.encode())
    starts = sorted(items, key=lambda item: item.offset)
    chunks: list[Chunk] = []
    for first in range(0, len(tokens), shape.chunk_tokens):
        end = min(first + shape.chunk_tokens, len(tokens))
        _feed(digest, array("q", tokens[first:end]).tobytes())
        for item in _between(starts, first, end):
            _feed(digest, f"{item.offset}:{item.key}".encode())
        first_block, blocks = first // shape.block_tokens, -(-(end - first) // shape.block_tokens)
        key = PREFIX + digest.hexdigest()[:48]
        chunks.append(Chunk(key, first_block, blocks, end, blocks * shape.block_bytes))
    return chunks


def _between(items: Iterable[Item], first: int, end: int) -> Iterator[Item]:
    return (item for item in items if first <= item.offset < end)


def _feed(digest: "hashlib._Hash", data: bytes) -> None:
    digest.update(len(data).to_bytes(8, "little"))
    digest.update(data)
