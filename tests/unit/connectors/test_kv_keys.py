# SPDX-License-Identifier: Apache-2.0
"""A chunk's key is that of its content and of all that comes before it."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vllm_epd.connectors.kv_keys import ChunkShape, Item, cut

SHAPE = ChunkShape(block_tokens=4, block_bytes=100, chunk_blocks=2)
PROMPT = list(range(19))


def keys(tokens: list[int], items: tuple[Item, ...] = (), circumstances: tuple[str | None, ...] = (None,)) -> list[str]:
    return [chunk.key for chunk in cut(tokens, items, circumstances, SHAPE)]


def test_a_prompt_is_cut_into_full_chunks_and_a_rest() -> None:
    chunks = cut(PROMPT, (), (), SHAPE)
    assert [(chunk.first_block, chunk.blocks, chunk.end, chunk.nbytes) for chunk in chunks] == [
        (0, 2, 8, 200),
        (2, 2, 16, 200),
        (4, 1, 19, 100),
    ]
    assert SHAPE.nbytes(19) == 500


def test_prompts_share_the_chunks_of_their_common_beginning() -> None:
    other = [*PROMPT[:17], 99]
    assert keys(PROMPT)[:2] == keys(other)[:2]
    assert keys(PROMPT)[2] != keys(other)[2]


def test_another_token_changes_its_chunk_and_all_after_it() -> None:
    changed = [*PROMPT[:9], 99, *PROMPT[10:]]
    assert [a == b for a, b in zip(keys(PROMPT), keys(changed), strict=True)] == [True, False, False]


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ((Item("a", 9),), (Item("b", 9),)),
        ((Item("a", 9),), (Item("a", 10),)),
        ((Item("a", 9),), ()),
        ((Item("a", 9), Item("b", 12)), (Item("b", 9), Item("a", 12))),
    ],
)
def test_media_counts_from_where_it_begins(one: tuple[Item, ...], other: tuple[Item, ...]) -> None:
    assert [a == b for a, b in zip(keys(PROMPT, one), keys(PROMPT, other), strict=True)] == [True, False, False]


def test_circumstances_part_everything() -> None:
    words: list[tuple[str | None, ...]] = [(None, None), ("a", None), (None, "a"), ("", None)]
    assert len({keys(PROMPT, (), each)[0] for each in words}) == len(words)


@given(st.lists(st.integers(0, 300000), max_size=60), st.integers(1, 5), st.integers(1, 4))
def test_chunks_cover_all_blocks_once(tokens: list[int], block_tokens: int, chunk_blocks: int) -> None:
    chunks = cut(tokens, (), (), ChunkShape(block_tokens, 7, chunk_blocks))
    covered = [chunk.first_block + block for chunk in chunks for block in range(chunk.blocks)]
    assert covered == list(range(-(-len(tokens) // block_tokens)))
    assert (chunks[-1].end if chunks else 0) == len(tokens)
