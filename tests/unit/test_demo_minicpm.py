# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")
Image = pytest.importorskip("PIL.Image")

from vllm_epd.demo.remote_code.image_processing_minicpmv import MiniCPMVImageProcessor  # noqa: E402

FEATURES = 32


@pytest.fixture
def processor():
    return MiniCPMVImageProcessor(scale_resolution=224, image_feature_size=FEATURES)


def picture(width, height):
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8))


@pytest.mark.parametrize(
    ("size", "grid"),
    [
        ((100, 100), None),
        ((224, 224), None),
        ((448, 448), (2, 2)),
        ((224, 2016), (1, 9)),
        ((2016, 224), (9, 1)),
        ((640, 360), (3, 2)),
        ((4000, 3000), (3, 3)),
    ],
)
def test_grid(processor, size, grid):
    assert processor.get_sliced_grid(size) == grid


def test_grid_keeps_to_the_limit(processor):
    assert processor.get_sliced_grid((4000, 3000), max_slice_nums=1) is None
    columns, rows = processor.get_sliced_grid((4000, 3000), max_slice_nums=4)
    assert columns * rows <= 4


@pytest.mark.parametrize("size", [(448, 448), (640, 360), (100, 300), (1024, 768), (3, 500), (1, 1)])
def test_views_and_placeholder_agree(processor, size):
    batch = processor(picture(*size))
    strips, sizes = batch["pixel_values"][0], batch["tgt_sizes"][0]
    placeholder = processor.get_slice_image_placeholder(size)
    assert placeholder.count("<unk>") == FEATURES * len(strips)
    assert placeholder.count("<slice>") == len(strips) - 1
    assert [tuple(strip.shape) for strip in strips] == [(3, 14, 14 * int(h * w)) for h, w in sizes]
    assert batch["image_sizes"][0][0].tolist() == list(size)


def test_placeholder_text(processor):
    whole = "<image>" + "<unk>" * FEATURES + "</image>"
    part = "<slice>" + "<unk>" * FEATURES + "</slice>"
    assert processor.get_slice_image_placeholder((100, 100), image_idx=3) == f"<image_id>3</image_id>{whole}"
    sliced = processor.get_slice_image_placeholder((640, 360), use_image_id=False)
    assert sliced == f"{whole}{part * 3}\n{part * 3}"


def test_strip_holds_the_patches_row_by_row():
    plain = {"image_mean": [0] * 3, "image_std": [1] * 3}
    processor = MiniCPMVImageProcessor(scale_resolution=4, patch_size=2, **plain)
    pixels = np.arange(4 * 4, dtype=np.uint8).reshape(4, 4)
    strip = processor(Image.fromarray(np.stack([pixels] * 3, axis=-1)))["pixel_values"][0][0]
    patches = (strip[0] * 255).round().int().split(2, dim=-1)
    assert [patch.flatten().tolist() for patch in patches] == [
        [0, 1, 4, 5],
        [2, 3, 6, 7],
        [8, 9, 12, 13],
        [10, 11, 14, 15],
    ]


def test_slices_cut_up_the_picture_row_by_row(processor):
    large = processor._views(picture(448, 448), None)
    assert len(large) == 5
    rows = [np.hstack([np.asarray(view) for view in large[start : start + 2]]) for start in (1, 3)]
    assert (np.vstack(rows) == np.asarray(picture(448, 448))).all()


def test_prompts_keep_their_pictures(processor):
    clip = np.stack([np.asarray(picture(64, 48))] * 3)
    for images, counts in [
        (picture(64, 48), [1]),
        ([picture(64, 48), picture(48, 64)], [2]),
        ([[picture(64, 48)], [picture(64, 48), picture(48, 64)]], [1, 2]),
        ([clip, clip[:2]], [3, 2]),
    ]:
        assert [len(sizes) for sizes in processor(images)["image_sizes"]] == counts


def test_options_of_the_caller_reach_the_processor(tmp_path, processor):
    processor.save_pretrained(tmp_path)
    one = MiniCPMVImageProcessor.from_pretrained(tmp_path, max_slice_nums=1)
    assert one.get_sliced_grid((4000, 3000)) is None
    assert one.image_feature_size == FEATURES
