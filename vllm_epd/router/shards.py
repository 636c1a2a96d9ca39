# SPDX-License-Identifier: Apache-2.0
"""One media part that several encode instances work on: how many, and the item that their shards make up. Pure."""

from collections.abc import Callable, Sequence

from msgspec.structs import replace

from vllm_epd.errors import UpstreamError
from vllm_epd.router.encoders import Part
from vllm_epd.router.instances import Instance
from vllm_epd.router.irp import idle_degree
from vllm_epd.router.media import EncodedItem, Shard


def degree(
    part: Part, modality: str, encoders: Sequence[Instance], among: int, asked: int | None, made: Callable[[str], bool]
) -> int:
    """As how many shards a part is to be encoded.

    Args:
        part: which one.
        modality: of the part.
        encoders: those that may encode it.
        among: distinct media parts of the request, which are spread over the encoders anyway.
        asked: how many shards are asked for; None for as many as there are idle encoders, if the part is large.
        made: whether what has this digest was made or is being made; the same shards are taken again.
    """
    if part.digest is None or not all(each.info.limits.get(f"shards_{modality}") for each in encoders):
        return 1
    if made(part.digest):
        return 1
    for count in range(2, len(encoders) + 1):
        if made(shard_digest(part.digest, Shard(0, count))):
            return count
    if asked is not None:
        return min(asked, len(encoders))
    idle = sum(not each.outstanding for each in encoders)
    return idle_degree(idle, among, part.cost)


def shards_of(part: Part, count: int) -> list[Part]:
    """The part itself, or its shards; each is admitted, encoded and kept like a part."""
    if count == 1 or part.digest is None:
        return [part]
    shards = [Shard(index, count) for index in range(count)]
    return [Part(part.places, shard_digest(part.digest, each), part.cost / count, shard=each) for each in shards]


def shard_digest(digest: str, shard: Shard) -> str:
    """The name of the embedding of one shard of the part with that digest."""
    return f"{digest}:{shard.index}/{shard.count}"


def joined(pieces: Sequence[EncodedItem]) -> EncodedItem:
    """The item that the shards of one part make up, in order; an item that is whole is that itself.

    Raises:
        UpstreamError: they do not make up one item.
    """
    if len(pieces) == 1 and pieces[0].shard is None:
        return pieces[0]
    full = [each for each in pieces if not each.is_empty]
    names = {(each.mm_hash, 1 if each.shard is None else each.shard.count) for each in pieces}
    indices = [0 if each.shard is None else each.shard.index for each in full]
    if len(names) != 1 or indices != list(range(names.pop()[1])):
        told = [(each.mm_hash, each.shard) for each in pieces]
        raise UpstreamError(f"encode instances gave shards that do not make up one item: {told}", stage="encode")
    if len(full) == 1:
        return full[0]
    return replace(full[0], handle=None, shard=None, parts=tuple(each.handle for each in full))
