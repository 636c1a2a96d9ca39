# SPDX-License-Identifier: Apache-2.0
"""Tiles and tokens of media: by hand, and against what vLLM's and transformers' own processors compute."""

import math
from types import SimpleNamespace

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from vllm_epd.demo.store import ensure_model
from vllm_epd.errors import ConfigError
from vllm_epd.planner.profile.derive.architectures import GEMMA_3_27B, INTERNVL2_8B, MINICPM_V_2_6, QWEN2_5_VL_7B
from vllm_epd.planner.profile.media import measure, measure_visual
from vllm_epd.planner.profile.profile import Audio, Native, Tiled
from vllm_epd.planner.profile.store import load_profile
from vllm_epd.planner.workload.requests import Item, Kind

INTERNVL = INTERNVL2_8B.media
MINICPM = MINICPM_V_2_6.media
QWEN = QWEN2_5_VL_7B.media

sides = st.integers(1, 5000)


def image(media, width, height):
    return measure_visual(media, Item(Kind.IMAGE, width, height))


def video(media, width, height, frames):
    return measure_visual(media, Item(Kind.VIDEO, width, height, frames))


@pytest.mark.parametrize(
    ("size", "internvl", "minicpm"), [((313, 234), 13, 1), ((787, 444), 3, 3), ((4032, 3024), 13, 10)]
)
def test_tiles_are_those_of_the_papers_table(size, internvl, minicpm):
    assert image(INTERNVL, *size).tiles == internvl
    assert image(MINICPM, *size).tiles == minicpm


def test_tiles_of_one_size():
    found = image(INTERNVL, 4032, 3024)
    assert (found.patches, found.pairs) == (13 * 1024, 13 * 1024**2)
    assert (found.tokens, found.pixels) == (13 * 256 + 2, 4032 * 3024)
    assert image(GEMMA_3_27B.media, 4032, 3024).tiles == 1


def test_slices_have_about_the_area_of_a_tile():
    found = image(MINICPM, 4032, 3024)
    assert found.patches == pytest.approx(10 * 1024, rel=0.05)
    assert found.tokens == 10 * (64 + 2) + 3 + 2


def test_an_image_of_its_own_size_is_one_piece():
    found = image(QWEN, 1120, 560)
    assert (found.tiles, found.patches, found.tokens) == (1, 80 * 40, 40 * 20 + 2)
    assert found.pairs == round((28 * (80 * 40) ** 2 / 50 + 4 * (80 * 40) ** 2) / 32)


def test_frames_of_a_video():
    assert video(INTERNVL, 640, 480, 8).tiles == 8
    assert video(INTERNVL, 640, 480, 8).tokens == 8 * (256 + 6)
    assert video(MINICPM, 640, 480, 8).tokens == 8 * 66
    odd = video(QWEN, 640, 480, 7)
    assert (odd.tiles, odd.tokens - 2) == (4, 4 * (image(QWEN, 640, 480).tokens - 2))
    assert odd.pairs == 4 * image(QWEN, 640, 480).pairs
    assert odd.pixels == 7 * 640 * 480


def test_audio_needs_a_model_that_takes_it():
    profile = load_profile("internvl2-8b@h100")
    with pytest.raises(ConfigError, match="InternVL2-8B takes no audio"):
        measure(profile, Item(Kind.AUDIO, seconds=3.0))


def test_audio(replaced):
    found = measure(replaced(audio=Audio(frames_per_s=50, tokens_per_s=6.25)), Item(Kind.AUDIO, seconds=3.5))
    assert (found.tiles, found.patches, found.pairs, found.tokens, found.pixels) == (1, 175, 175**2, 22, 0)
    assert found.audio_s == 3.5


def test_too_narrow_an_image_is_refused():
    with pytest.raises(ConfigError, match="10x2010"):
        image(QWEN, 10, 2010)


@pytest.fixture(scope="module")
def internvl():
    """vLLM's processor, with the tokenizer of the demo model and tiles of InternVL2-8B."""
    pytest.importorskip("vllm")
    from transformers import AutoTokenizer
    from vllm.transformers_utils.processors.internvl import InternVLImageProcessor, InternVLProcessor

    tokenizer = AutoTokenizer.from_pretrained(ensure_model("internvl2"))
    images = InternVLImageProcessor(448, 1, 12, dynamic_image_size=True, use_thumbnail=True)
    return InternVLProcessor(images, tokenizer, image_seq_length=256)


def test_tokens_of_internvl_are_those_of_vllm(internvl):
    @settings(max_examples=300)
    @given(sides, sides)
    @example(448, 448)
    @example(1, 5000)
    def same(width, height):
        tokens = internvl.get_num_image_tokens(image_width=width, image_height=height)
        whole = internvl.get_image_repl(tokens // 256).full
        assert image(INTERNVL, width, height).tokens == len(whole)

    same()


@pytest.fixture(scope="module")
def minicpm():
    """The processor and the tokenizer of the demo model, and what its media are."""
    pytest.importorskip("transformers")
    from transformers import AutoImageProcessor, AutoTokenizer

    folder = ensure_model("minicpm-v-2.6")
    return (
        AutoImageProcessor.from_pretrained(folder, trust_remote_code=True),
        AutoTokenizer.from_pretrained(folder, trust_remote_code=True),
        Tiled("area", 224, 14, 9, thumbnail=True, tokens=32, extra=3, tile_extra=2, row_extra=1),
    )


def test_tokens_of_minicpm_are_those_of_its_processor(minicpm):
    processor, tokenizer, media = minicpm

    @settings(max_examples=200)
    @given(sides, sides)
    def same(width, height):
        text = processor.get_slice_image_placeholder((width, height), image_idx=1)
        expected = tokenizer(text, add_special_tokens=False)["input_ids"]
        assert image(media, width, height).tokens == len(expected)
        frame = processor.get_slice_image_placeholder((width, height), max_slice_nums=1, use_image_id=False)
        expected = tokenizer(frame * 2, add_special_tokens=False)["input_ids"]
        assert video(media, width, height, 2).tokens == len(expected)

    same()


@pytest.fixture(scope="module")
def slices():
    """The image processor of MiniCPM-V 4.6, which cuts as 2.6 does but for patches of a quarter."""
    pytest.importorskip("transformers")
    from transformers.models.minicpmv4_6.image_processing_pil_minicpmv4_6 import MiniCPMV4_6ImageProcessorPil

    return MiniCPMV4_6ImageProcessorPil()


def test_patches_of_minicpm_are_those_of_transformers(slices):
    @settings(max_examples=300)
    @given(sides, sides)
    @example(448, 449)
    def same(width, height):
        quarter, size = 14 / 4, (height, width)
        grid = slices.get_sliced_grid(size, 9, 448)
        patches = math.prod(slices.find_best_resize(size, 448, quarter, allow_upscale=True)) / 14**2
        if grid:
            patches += math.prod(slices.get_refine_size(size, grid, 448, quarter, allow_upscale=True)) / 14**2
        found = image(MINICPM, width, height)
        assert found.patches == patches
        assert found.tiles == (1 + math.prod(grid) if grid else 1)

    same()


DEMO_QWEN = Native(14, 2, least_pixels=4 * 28**2, most_pixels=1280 * 28**2, window=112, whole=0.5)


@pytest.mark.parametrize("media", [QWEN, DEMO_QWEN])
def test_tokens_of_qwen_are_those_of_transformers(media):
    resize = pytest.importorskip("transformers.models.qwen2_vl.image_processing_qwen2_vl").smart_resize

    @settings(max_examples=300)
    @given(sides, sides)
    def same(width, height):
        if max(width, height) > 200 * min(width, height):
            return
        resized = resize(height, width, 28, media.least_pixels, media.most_pixels)
        assert image(media, width, height).tokens == math.prod(resized) // 28**2 + 2

    same()


def test_pairs_of_qwen_are_those_of_vllms_windows():
    model = pytest.importorskip("vllm.model_executor.models.qwen2_5_vl").Qwen2_5_VisionTransformer
    sizes = SimpleNamespace(window_size=112, spatial_merge_size=2, patch_size=14, spatial_merge_unit=4)
    windowed = Native(14, 2, least_pixels=1, most_pixels=10**9, window=112)

    @settings(max_examples=100)
    @given(st.integers(1, 60), st.integers(1, 60))
    def same(columns, rows):
        _, ends = model.get_window_index_thw(sizes, 1, 2 * rows, 2 * columns)
        lengths = ends.diff(prepend=ends.new_zeros(1)).tolist()
        assert image(windowed, 28 * columns, 28 * rows).pairs == sum(length**2 for length in lengths)

    same()
