# SPDX-License-Identifier: Apache-2.0
"""The largest of everything: by hand on round numbers, and that the paper's tables come out in shape."""

import msgspec
import pytest

from vllm_epd.planner.profile.largest import (
    Batch,
    Bound,
    Device,
    Largest,
    largest_batch,
    largest_kv_share,
    most_images,
    what_stops,
)
from vllm_epd.planner.profile.profile import Memory, Tiled
from vllm_epd.planner.profile.store import load_profile
from vllm_epd.planner.workload.requests import Item, Kind
from vllm_epd.types import RoleSet

IMAGE = Item(Kind.IMAGE, 448, 448)
LARGE = Item(Kind.IMAGE, 4032, 3024)
ROUND = Memory(
    encoder=100,
    language=300,
    kv_per_token=1,
    embedding_per_token=1,
    encode_per_patch=5,
    prefill_per_token=2,
    reserved=100,
    max_context=45,
)


@pytest.fixture
def device(replaced):
    """A card of 1,000 bytes, and images of 4 patches and 4 tokens."""
    profile = replaced()
    hardware = msgspec.structs.replace(profile.hardware, memory_bytes=1000)
    media = Tiled("aspect", tile=448, patch=224, most=1, thumbnail=False, tokens=4)

    def build(letters, **fields):
        known = replaced(hardware=hardware, media=media, memory=ROUND)
        return Device(known, RoleSet.from_letters(letters), **fields)

    return build


def test_an_encoder_holds_patches_and_embeddings(device):
    # 1000 - 100 - 100 bytes at 4 * 5 + 4 an image.
    assert most_images(device("E"), IMAGE, 5, 0.5) == Largest(33, Bound.MEMORY)


def test_memory_that_is_set_aside_for_embeddings(device):
    # 800 - 100 at 20 an image, and no more embeddings than there is room for.
    assert most_images(device("E", pool_tokens=100), IMAGE, 5, 0.5) == Largest(25, Bound.MEMORY)
    assert most_images(device("E", pool_tokens=200), IMAGE, 5, 0.5) == Largest(30, Bound.MEMORY)


def test_a_prompt_is_bounded_by_the_context(device):
    assert most_images(device("P"), IMAGE, 5, 0.5) == Largest(10, Bound.CONTEXT)


def test_a_batch_is_bounded_by_memory(device):
    # 600 bytes: 300 for keys and values, 300 for 9 * 2 of work and 4 of embeddings a request.
    assert largest_batch(device("P"), 1, IMAGE, 5, 0.5) == Largest(13, Bound.MEMORY)
    # A KV cache of 60 bytes takes 6 prompts of 9 tokens.
    assert largest_batch(device("P"), 1, IMAGE, 5, 0.1) == Largest(6, Bound.MEMORY)


def test_on_one_device_the_larger_work_counts(device):
    # 500 bytes, 250 of them for 20 of work and 4 of embeddings an image.
    assert most_images(device("EP"), IMAGE, 1, 0.5) == Largest(10, Bound.MEMORY)


def test_the_largest_share_for_keys_and_values(device):
    # 500 - 96 bytes are 80.8 %.
    assert largest_kv_share(device("EP"), Batch(1, 4, IMAGE, 1)) == Largest(80, None)
    assert largest_kv_share(device("EP"), Batch(1, 40, IMAGE, 1)) == Largest(0, Bound.MEMORY)
    assert largest_kv_share(device("P"), Batch(1, 11, IMAGE, 5)) == Largest(0, Bound.CONTEXT)


def test_weights_that_do_not_fit_leave_no_room(device):
    assert largest_batch(device("EP", memory_share=0.4), 1, IMAGE, 5, 0.5) == Largest(0, Bound.MEMORY)


@pytest.mark.parametrize("images", [1, 7])
def test_the_next_one_is_stopped(images):
    for letters in ("EP", "E", "P"):
        device = Device(load_profile("minicpm-v-2.6@a100-80gb-eager"), RoleSet.from_letters(letters))
        found = largest_batch(device, images, LARGE, 22, 0.8)
        assert what_stops(device, Batch(found.count, images, LARGE, 22), 0.8) is None
        assert what_stops(device, Batch(found.count + 1, images, LARGE, 22), 0.8) is found.bound


@pytest.mark.parametrize("model", ["minicpm-v-2.6", "internvl2-8b", "internvl2-26b"])
def test_apart_encode_and_prefill_hold_more_than_together(model):
    profile = load_profile(f"{model}@a100-80gb-eager")
    together, encode, prefill = (Device(profile, RoleSet.from_letters(letters)) for letters in ("EP", "E", "P"))
    for device in (encode, prefill):
        assert largest_batch(device, 10, LARGE, 22, 0.8).count >= largest_batch(together, 10, LARGE, 22, 0.8).count
    batch = Batch(1, 5, LARGE, 22)
    assert largest_kv_share(prefill, batch).count >= largest_kv_share(together, batch).count


def test_out_of_memory_and_out_of_context_where_the_paper_has_them():
    """Of its table 8, for 4032x3024: MiniCPM-V 2.6 with 80 images, both InternVL2 with 20 and 40."""
    minicpm, small, large = (
        load_profile(f"{model}@a100-80gb-eager") for model in ("minicpm-v-2.6", "internvl2-8b", "internvl2-26b")
    )

    def bounds(profile, images):
        batch = Batch(1, images, LARGE, 22)
        pool = 3000 * profile.media.tokens
        return [
            largest_kv_share(Device(profile, RoleSet.from_letters(letters), pool_tokens=pool), batch).bound
            for letters in ("EP", "P")
        ]

    assert bounds(minicpm, 80) == [Bound.MEMORY, Bound.CONTEXT]
    assert bounds(small, 20) == [Bound.CONTEXT, Bound.CONTEXT]
    assert bounds(large, 20) == [Bound.MEMORY, None]
    assert bounds(large, 40) == [Bound.MEMORY, Bound.CONTEXT]
