# SPDX-License-Identifier: Apache-2.0
"""Rows of planes are blocks of caches, whatever the layout of these."""

import pytest

torch = pytest.importorskip("torch")

from vllm_epd import ops  # noqa: E402
from vllm_epd.connectors.kv_layout import planes, row_bytes  # noqa: E402
from vllm_epd.errors import ConfigError  # noqa: E402

BLOCKS = 6


def numbered(*shape: int) -> torch.Tensor:
    return torch.arange(torch.Size(shape).numel(), dtype=torch.float32).view(shape)


def interleaved() -> list[torch.Tensor]:
    """Two layers whose blocks lie side by side in one allocation."""
    whole = numbered(BLOCKS, 2, 3, 8)
    return [whole[:, 0], whole[:, 1]]


LAYOUTS = {
    "blocks first": lambda: [numbered(BLOCKS, 2, 4, 8), numbered(BLOCKS, 2, 4, 8) + 0.5],
    "keys and values first": lambda: [numbered(2, BLOCKS, 4, 8)],
    "other order of axes": lambda: [numbered(BLOCKS, 4, 2, 8).permute(0, 2, 1, 3)],
    "smaller blocks of kernels": lambda: [numbered(3 * BLOCKS, 2, 4)],
    "all layers of a block together": interleaved,
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_blocks_move_bit_for_bit(name: str) -> None:
    source, target = LAYOUTS[name](), LAYOUTS[name]()
    for cache in target:
        cache.zero_()
    there, here = planes(source, BLOCKS), planes(target, BLOCKS)
    assert all(plane.shape[0] == BLOCKS for plane in there)
    assert row_bytes(there) * BLOCKS == sum(cache.numel() * 4 for cache in source)
    moved = torch.empty(3 * row_bytes(there), dtype=torch.uint8)
    ops.gather_rows(there, [4, 0, 5], moved)
    ops.scatter_rows(moved, here, [1, 3, 0])
    for old, new in zip(planes(source, BLOCKS), here, strict=True):
        assert torch.equal(new[[1, 3, 0]], old[[4, 0, 5]])
        assert not new[[2, 4, 5]].any()


def test_layers_that_share_a_cache_are_one_plane() -> None:
    cache = numbered(BLOCKS, 8)
    assert len(planes([cache, cache], BLOCKS)) == 1


@pytest.mark.parametrize(
    "cache",
    [torch.zeros(7, 4), torch.zeros(3, BLOCKS, 4), torch.zeros(BLOCKS, 4, 8)[:, :, ::2]],
    ids=["number of blocks", "axes", "gaps"],
)
def test_what_is_unknown_is_refused_with_a_way_out(cache: torch.Tensor) -> None:
    with pytest.raises(ConfigError, match="--epd-kv-connector nixl"):
        planes([cache], BLOCKS)
