# SPDX-License-Identifier: Apache-2.0
"""Which instances have seen the beginning of a prompt. Pure.

A prompt is a chain of blocks, each named by a digest of its own content and of the name of the block before it, so that
equal names mean equal beginnings. That is for choosing an instance alone: nothing is ever taken from a cache on the
strength of these names.
"""

from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from hashlib import blake2b
from typing import Any

import msgspec

from vllm_epd.router.costs import BYTES_PER_TOKEN
from vllm_epd.types import InstanceInfo

#: Tokens of one block, by the same rule by which text is counted.
BLOCK_TOKENS = 128
_BLOCK_BYTES = BLOCK_TOKENS * BYTES_PER_TOKEN
#: Longer media is named by its length and three pieces of this size: it would otherwise be most of what is hashed.
_PIECE = 4 * 2**10
#: A prompt is told apart by so many blocks at most.
_MOST_BLOCKS = 1024

Name = bytes
#: Names one start of an instance.
Holder = tuple[str, str]


def holder(info: InstanceInfo) -> Holder:
    """What an instance is called here: a restarted one holds nothing."""
    return info.instance_id, info.epoch


def chain(context: Any, pieces: Sequence[Any]) -> list[Name]:
    """The names of the whole blocks of a prompt.

    Args:
        context: what tells apart caches of equal prompts: model, salt and the like.
        pieces: what the prompt consists of, in order: messages, a text, or token ids.
    """
    name = _digest(b"", _canonical(context))
    names: list[Name] = []
    for block in _blocks(b"".join(_canonical(_shortened(piece)) for piece in pieces)):
        name = _digest(name, block)
        names.append(name)
        if len(names) == _MOST_BLOCKS:
            break
    return names


def whole(value: Any) -> list[Name]:
    """A chain of one block that stands for a value as a whole."""
    return [_digest(b"", _canonical(_shortened(value)))]


class Holders:
    """Who has seen a block last; of more than `capacity` blocks those asked for least lately are forgotten."""

    def __init__(self, capacity: int, per_block: int = 4) -> None:
        self._capacity = capacity
        self._per_block = per_block
        self._known: OrderedDict[Name, OrderedDict[Holder, None]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._known)

    def note(self, names: Sequence[Name], seen_by: Holder) -> None:
        """An instance has got a prompt with these blocks. Its beginning is forgotten last."""
        for name in reversed(names):
            holders = self._known.setdefault(name, OrderedDict())
            holders[seen_by] = None
            holders.move_to_end(seen_by)
            while len(holders) > self._per_block:
                holders.popitem(last=False)
            self._known.move_to_end(name)
        while len(self._known) > self._capacity:
            self._known.popitem(last=False)

    def blocks(self, names: Sequence[Name], asked: Holder) -> int:
        """How many blocks from the beginning an instance has seen."""
        for count, name in enumerate(names):
            if asked not in self._known.get(name, ()):
                return count
        return len(names)

    def keep_only(self, present: Callable[[Holder], bool]) -> None:
        """Forget instances that are gone."""
        for name, holders in list(self._known.items()):
            for each in [each for each in holders if not present(each)]:
                del holders[each]
            if not holders:
                del self._known[name]


def _blocks(data: bytes) -> Iterator[bytes]:
    for start in range(0, len(data) - _BLOCK_BYTES + 1, _BLOCK_BYTES):
        yield data[start : start + _BLOCK_BYTES]


def _digest(before: Name, data: bytes) -> Name:
    return blake2b(before + data, digest_size=16).digest()


def _canonical(value: Any) -> bytes:
    return msgspec.json.encode(value, order="deterministic")


def _shortened(value: Any) -> Any:
    """The value with long media named by its length and three pieces of it; text is left as it is."""
    if isinstance(value, dict):
        return {
            key: _named(each) if isinstance(each, str) and _is_media(key) else _shortened(each)
            for key, each in value.items()
        }
    if isinstance(value, list):
        return value if value and type(value[0]) is int else [_shortened(each) for each in value]
    return value


def _is_media(key: str) -> bool:
    return key in ("url", "data") or key.endswith("_url")


def _named(text: str) -> str | list[Any]:
    if len(text) <= _PIECE:
        return text
    middle = len(text) // 2
    pieces = "".join((text[:_PIECE], text[middle : middle + _PIECE], text[-_PIECE:]))
    return [len(text), _digest(b"", pieces.encode(errors="replace")).hex()]
