# SPDX-License-Identifier: Apache-2.0
"""Which instances our own KV connector is for, and what its peers must agree on."""

from types import SimpleNamespace
from typing import Any

import pytest

from vllm_epd.connectors.kv_keys import ChunkShape
from vllm_epd.connectors.kv_shape import chunk_shape, content, sized
from vllm_epd.connectors.settings import KVSettings
from vllm_epd.errors import ConfigError

SIZES = ("tensor", "pipeline", "prefill_context", "decode_context")
SPEC = SimpleNamespace(block_size=16, page_size_bytes=1000)


def config(**sizes: int) -> Any:
    """An instance of these parallel sizes."""
    parallel = {f"{name}_parallel_size": sizes.get(name, 1) for name in SIZES}
    return SimpleNamespace(parallel_config=SimpleNamespace(**parallel))


def caches(*groups: int) -> Any:
    """Groups of so many layers each."""
    made = [
        SimpleNamespace(kv_cache_spec=SPEC, layer_names=[f"{group}.{layer}" for layer in range(layers)])
        for group, layers in enumerate(groups)
    ]
    return SimpleNamespace(kv_cache_groups=made)


@pytest.mark.parametrize("size", [1, 2, 8])
def test_tensor_parallel_ranks_cut_their_own_blocks(size: int) -> None:
    assert chunk_shape(config(tensor=size), caches(3)) == ChunkShape(16, 3000, 64)


@pytest.mark.parametrize("name", SIZES[1:])
def test_other_ways_to_split_a_model_are_refused_with_advice(name: str) -> None:
    wanted = f"not for {name.replace('_', '-')}-parallel size 2; use --epd-kv-connector nixl on prefill and decode"
    with pytest.raises(ConfigError, match=wanted):
        chunk_shape(config(tensor=2, **{name: 2}), caches(3))


def test_several_groups_are_refused_with_advice() -> None:
    with pytest.raises(ConfigError, match="this model has 2; use --epd-kv-connector nixl"):
        chunk_shape(config(), caches(3, 1))


def test_peers_must_agree_on_the_blocks() -> None:
    shape = ChunkShape(16, 3000, 64)
    others = [content(ChunkShape(32, 3000, 32), "auto"), content(ChunkShape(16, 1500, 64), "auto")]
    assert content(shape, "auto") not in [*others, content(shape, "fp8")]


def test_a_pool_holds_the_longest_prompt() -> None:
    shape = ChunkShape(16, 2**20, 64)
    settings = KVSettings("e-kv", "127.0.0.1", 1, 0, 60.0, 5.0, "shm", "UCX")
    assert sized(settings, shape, 4096).pool_bytes >= 2 * shape.nbytes(4096)
    with pytest.raises(ConfigError, match="--epd-kv-pool-bytes 1048576 cannot hold"):
        sized(KVSettings("e-kv", "127.0.0.1", 1, 2**20, 60.0, 5.0, "shm", "UCX"), shape, 4096)
