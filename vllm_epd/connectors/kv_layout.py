# SPDX-License-Identifier: Apache-2.0
"""vLLM's KV caches as planes of bytes: one row of each plane is what a layer keeps of one block."""

import math
from collections.abc import Iterable, Sequence

import torch

from vllm_epd.errors import ConfigError

ELSEWHERE = "use --epd-kv-connector nixl on prefill and decode"


def planes(caches: Iterable[torch.Tensor], num_blocks: int) -> list[torch.Tensor]:
    """Planes of all layers, each uint8 [num_blocks, bytes of a block]; layers that share a cache are one.

    Blocks are the outermost dimension of a layer's cache, or the second one after keys and values. Where kernels work
    on smaller blocks than the scheduler, several of theirs in a row are one of its.

    Raises:
        ConfigError: a layer keeps its blocks in another way.
    """
    distinct = {cache.data_ptr(): cache for cache in caches}
    return [plane for cache in distinct.values() for plane in _planes_of(cache, num_blocks)]


def row_bytes(all_planes: Sequence[torch.Tensor]) -> int:
    """What all planes together keep of one block, in bytes."""
    return sum(plane.shape[1] for plane in all_planes)


def _planes_of(cache: torch.Tensor, num_blocks: int) -> list[torch.Tensor]:
    if cache.ndim > 1 and cache.shape[0] % num_blocks == 0:
        halves = [cache]
    elif cache.ndim > 2 and cache.shape[0] == 2 and cache.shape[1] % num_blocks == 0:
        halves = list(cache)
    else:
        raise ConfigError(f"KV caches of shape {tuple(cache.shape)} for {num_blocks} blocks are unknown; {ELSEWHERE}")
    return [_plane(half, num_blocks) for half in halves]


def _plane(blocks: torch.Tensor, num_blocks: int) -> torch.Tensor:
    """The bytes of `blocks` [n * num_blocks, ...], whose rows are contiguous whatever the order of their axes."""
    elements = math.prod(blocks.shape[1:])
    span = 1 + sum((size - 1) * stride for size, stride in zip(blocks.shape[1:], blocks.stride()[1:], strict=True))
    ratio = blocks.shape[0] // num_blocks
    if span != elements or (ratio > 1 and blocks.stride(0) != elements):
        raise ConfigError(
            f"KV caches of shape {tuple(blocks.shape)} and strides {blocks.stride()} are unknown; {ELSEWHERE}"
        )
    shape, strides = (num_blocks, ratio * elements), (ratio * blocks.stride(0), 1)
    return blocks.as_strided(shape, strides, blocks.storage_offset()).view(torch.uint8)
