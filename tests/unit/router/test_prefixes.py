# SPDX-License-Identifier: Apache-2.0
"""Who has seen the beginning of a prompt."""

from hypothesis import given
from hypothesis import strategies as st

from vllm_epd.router.costs import BYTES_PER_TOKEN
from vllm_epd.router.prefixes import BLOCK_TOKENS, Holders, chain, whole

BLOCK = BLOCK_TOKENS * BYTES_PER_TOKEN
ONE, TWO = ("one", "1"), ("two", "1")
LETTERS = st.text("abc", max_size=4 * BLOCK)


def shared(first, second):
    return sum(1 for one, other in zip(first, second, strict=False) if one == other)


@given(LETTERS, LETTERS, LETTERS)
def test_prompts_share_as_many_names_as_they_share_whole_blocks(begin, one, other):
    first, second = chain("m", [begin + one]), chain("m", [begin + other])
    same = 0
    while same < min(len(begin + one), len(begin + other)) and (begin + one)[same] == (begin + other)[same]:
        same += 1
    assert len(first) == (len(begin + one) + 2) // BLOCK
    if begin + one != begin + other:
        assert shared(first, second) == (same + 1) // BLOCK


def test_a_name_stands_for_all_that_came_before():
    first, second = chain("m", ["a" * 3 * BLOCK]), chain("m", ["b" + "a" * 3 * BLOCK])
    assert shared(first, second) == 0
    assert len(set(first)) == len(first) == 3


def test_other_circumstances_are_another_chain():
    assert shared(chain({"model": "a"}, ["x" * BLOCK]), chain({"model": "b"}, ["x" * BLOCK])) == 0
    assert chain({"a": 1, "b": 2}, ["x" * BLOCK]) == chain({"b": 2, "a": 1}, ["x" * BLOCK])


def test_token_ids_are_a_prompt_too():
    ids = list(range(1000))
    assert shared(chain("m", [ids]), chain("m", [[*ids, 5]])) == len(chain("m", [ids])) > 3


def message(data, words="see"):
    part = {"type": "image_url", "image_url": {"url": "data:image/png;base64," + data}}
    return [{"role": "user", "content": [part, {"type": "text", "text": words}]}]


def test_large_media_takes_little_of_a_chain_and_still_tells_prompts_apart():
    large = "a" * 2**22
    names = chain("m", message(large, "w" * 2 * BLOCK))
    assert len(names) < 5
    assert names == chain("m", message(large, "w" * 2 * BLOCK))
    assert shared(names, chain("m", message(large + "a", "w" * 2 * BLOCK))) == 0
    assert whole(message(large)) != whole(message("b" + large[1:]))
    assert len(whole("x")) == 1


def test_blocks_are_counted_from_the_beginning():
    known, names = Holders(100), chain("m", ["x" * 5 * BLOCK])
    known.note(names[:3], ONE)
    known.note(names[4:], ONE)
    assert (known.blocks(names, ONE), known.blocks(names, TWO), known.blocks([], ONE)) == (3, 0, 0)


def test_a_restarted_instance_holds_nothing():
    known, names = Holders(100), chain("m", ["x" * BLOCK])
    known.note(names, ONE)
    assert known.blocks(names, ("one", "2")) == 0


@given(st.lists(st.tuples(st.integers(0, 20), st.integers(1, 8)), max_size=30))
def test_no_more_is_remembered_than_fits(prompts):
    known = Holders(16)
    for prompt, blocks in prompts:
        names = chain(prompt, ["x" * (blocks * BLOCK)])
        known.note(names, ONE)
        assert len(known) <= 16
        assert known.blocks(names, ONE) == len(names)


def test_of_what_no_longer_fits_the_beginning_is_forgotten_last():
    known, old, new = Holders(6), chain("m", ["x" * 4 * BLOCK]), chain("n", ["x" * 4 * BLOCK])
    known.note(old, ONE)
    known.note(new, ONE)
    assert (known.blocks(new, ONE), known.blocks(old, ONE)) == (4, 2)


def test_of_too_many_that_hold_a_block_the_latest_are_remembered():
    known, names = Holders(10, per_block=2), chain("m", ["x" * BLOCK])
    for number in range(3):
        known.note(names, (str(number), "1"))
    assert [known.blocks(names, (str(number), "1")) for number in range(3)] == [0, 1, 1]


def test_instances_that_are_gone_are_forgotten():
    known, names = Holders(10), chain("m", ["x" * 2 * BLOCK])
    known.note(names, ONE)
    known.note(names[:1], TWO)
    known.keep_only({TWO}.__contains__)
    assert (known.blocks(names, ONE), known.blocks(names, TWO), len(known)) == (0, 1, 1)
