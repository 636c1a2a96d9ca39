# SPDX-License-Identifier: Apache-2.0
"""How the KV caches of an instance are cut, and how large its pool is: from vLLM's configuration alone."""

from dataclasses import replace
from typing import TYPE_CHECKING

from vllm_epd.connectors.kv_keys import ChunkShape
from vllm_epd.connectors.kv_layout import ELSEWHERE
from vllm_epd.connectors.settings import KVSettings
from vllm_epd.errors import ConfigError
from vllm_epd.transfer.pool import whole_pages

if TYPE_CHECKING:
    from vllm.config import VllmConfig
    from vllm.v1.kv_cache_interface import KVCacheConfig

CHUNK_TOKENS = 1024
"""About what prefill computes in one step, so that a chunk travels while the next one is computed."""

PROMPTS = 2
"""Of the greatest length, for which a pool has room unless its size is given."""

LEAST_BYTES = 256 * 2**20


def chunk_shape(vllm_config: "VllmConfig", kv_cache_config: "KVCacheConfig") -> ChunkShape:
    """How each tensor-parallel rank of this instance cuts prompts, all of them alike.

    Raises:
        ConfigError: its caches are not of the kind that is handed over in blocks of one size.
    """
    parallel = vllm_config.parallel_config
    for what, size in (
        ("pipeline", parallel.pipeline_parallel_size),
        ("prefill-context", parallel.prefill_context_parallel_size),
        ("decode-context", parallel.decode_context_parallel_size),
    ):
        if size > 1:
            raise ConfigError(
                f"--epd-kv-connector epd is for tensor-parallel workers, not for {what}-parallel size {size};"
                f" {ELSEWHERE}"
            )
    groups = kv_cache_config.kv_cache_groups
    if len(groups) != 1:
        raise ConfigError(
            f"--epd-kv-connector epd knows one group of KV caches, this model has {len(groups)}; {ELSEWHERE}"
        )
    spec, layers = groups[0].kv_cache_spec, groups[0].layer_names
    specs = getattr(spec, "kv_cache_specs", None) or dict.fromkeys(layers, spec)
    block_bytes = sum(int(specs[layer].page_size_bytes) for layer in layers)
    return ChunkShape(spec.block_size, block_bytes, max(1, CHUNK_TOKENS // spec.block_size))


def sized(settings: KVSettings, shape: ChunkShape, max_model_len: int) -> KVSettings:
    """`settings` with a pool that holds the longest prompt.

    Raises:
        ConfigError: the given size is too small for it.
    """
    longest = max_model_len + shape.chunk_tokens  # each chunk begins a page of its own
    needed = whole_pages(shape.nbytes(longest))
    if not settings.pool_bytes:
        return replace(settings, pool_bytes=max(PROMPTS * needed, LEAST_BYTES))
    if settings.pool_bytes < needed:
        raise ConfigError(
            f"--epd-kv-pool-bytes {settings.pool_bytes} cannot hold the KV cache of a prompt of {max_model_len} tokens,"
            f" which has {needed} bytes; raise it or lower --max-model-len"
        )
    return settings


def content(shape: ChunkShape, cache_dtype: str) -> str:
    """What peers must agree on before the bytes of one mean anything to the other."""
    return f"KV blocks of {shape.block_tokens} tokens and {shape.block_bytes} bytes ({cache_dtype})"
