# SPDX-License-Identifier: Apache-2.0
"""What media parts and prompts are estimated at."""

import base64
import io
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from tests.unit.router.conftest import text
from vllm_epd.router.costs import (
    AUDIO_TOKENS_PER_S,
    FIRST_GUESS,
    Means,
    chat_tokens,
    completion_tokens,
    image_size,
    media_tokens,
    metadata_tokens,
    modality_of,
)
from vllm_epd.router.media import find_media

SIZES = st.tuples(st.integers(1, 300), st.integers(1, 300))
FORMATS = [("PNG", {}), ("JPEG", {}), ("JPEG", {"progressive": True}), ("GIF", {}), ("BMP", {})]
FORMATS += [("WEBP", {}), ("WEBP", {"lossless": True}), ("WEBP", {"exif": b"Exif\0\0II*\0"})]


def picture(size, form="PNG", **options):
    file = io.BytesIO()
    Image.new("RGB", size).save(file, form, **options)
    return file.getvalue()


def url(data, kind="image/png"):
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def image_part(address):
    return {"type": "image_url", "image_url": {"url": address}}


def tokens_of(part, means=None):
    (media,) = find_media([{"role": "user", "content": [part]}])
    return media_tokens(media, means or Means())


@pytest.mark.parametrize(("form", "options"), FORMATS, ids=str)
@given(size=SIZES)
def test_the_size_of_an_image_is_what_a_decoder_says(form, options, size):
    data = picture(size, form, **options)
    assert image_size(data) == Image.open(io.BytesIO(data)).size == size


def test_a_bitmap_from_the_top_down_has_a_height_too():
    data = bytearray(picture((5, 4), "BMP"))
    data[22:26] = struct.pack("<i", -4)
    assert image_size(bytes(data)) == (5, 4)


@given(st.binary(max_size=64), st.sampled_from([b"", b"\xff\xd8", b"GIF89a", b"BM", b"\x89PNG\r\n\x1a\n", b"RIFF"]))
def test_no_bytes_are_too_strange(data, begin):
    size = image_size(begin + data)
    assert size is None or len(size) == 2


@given(st.text(max_size=40))
def test_no_text_is_too_strange(data):
    assert tokens_of(image_part("data:image/png;base64," + data)) >= 1


@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP"])
def test_an_image_is_a_token_for_28_pixels_square(form):
    assert tokens_of(image_part(url(picture((560, 280), form)))) == 20 * 10


def test_the_size_is_found_behind_much_else():
    data = picture((280, 280), "JPEG", exif=b"Exif\0\0" + bytes(60_000))
    assert tokens_of(image_part(url(data))) == 100


def test_what_cannot_be_known_is_taken_for_the_average_of_its_kind():
    means = Means()
    far = image_part("https://example.org/cat.png")
    assert tokens_of(far, means) == FIRST_GUESS["image"]
    for _ in range(100):
        means.note("image", 50.0)
    assert tokens_of(far, means) == pytest.approx(50.0, abs=1.0)
    assert tokens_of(image_part("data:image/png;base64,CAT"), means) == means.of("image")
    assert means.of("video") == FIRST_GUESS["video"]


def test_sound_is_measured_in_seconds():
    wav = b"RIFF\0\0\0\0WAVEfmt " + struct.pack("<IHHIIHH", 16, 1, 1, 16000, 32000, 2, 16) + b"data\0\0\0\0"
    data = base64.b64encode(wav + bytes(4 * 32000 - len(wav))).decode()
    part = {"type": "input_audio", "input_audio": {"data": data, "format": "wav"}}
    assert tokens_of(part) == pytest.approx(4 * AUDIO_TOKENS_PER_S, rel=1e-3)
    mp3 = {"type": "audio_url", "audio_url": {"url": url(bytes(32_000), "audio/mpeg")}}
    assert tokens_of(mp3) == pytest.approx(2 * AUDIO_TOKENS_PER_S, rel=1e-3)


def test_film_is_measured_in_bytes():
    part = {"type": "video_url", "video_url": {"url": url(bytes(250_000), "video/mp4")}}
    assert tokens_of(part) == pytest.approx(2 * 768, rel=1e-3)


@pytest.mark.parametrize(
    ("part", "modality"),
    [
        ({"type": "input_image", "image_url": "data:,"}, "image"),
        ({"image_url": "data:,"}, "image"),
        ({"type": "input_audio", "input_audio": {"data": ""}}, "audio"),
        ({"audio_url": {"url": ""}}, "audio"),
        ({"type": "video_url", "video_url": {"url": ""}}, "video"),
    ],
)
def test_modality(part, modality):
    assert modality_of(part) == modality


@pytest.mark.parametrize(
    ("metadata", "tokens"),
    [
        ({"image_grid_thw": [1, 32, 32]}, 256),
        ({"video_grid_thw": [4, 16, 16]}, 256),
        ({"image_num_patches": 7}, 7 * 256),
        ({"image_grid_thw": []}, None),
        ({"image_sizes": [3, 4]}, None),
        ({}, None),
    ],
)
def test_what_encoding_tells_of_an_item(metadata, tokens):
    assert metadata_tokens(metadata) == tokens


def test_text_is_a_token_for_four_bytes():
    messages = [
        {"role": "system", "content": "x" * 40},
        {"role": "user", "content": [text("y" * 8), "z" * 4, image_part("data:,"), {"type": "text", "text": None}]},
        {"role": "assistant", "content": None},
    ]
    assert chat_tokens(messages) == 13
    assert chat_tokens([{"content": "字" * 4}]) == 3


def test_the_prompt_of_a_completion_is_text_or_tokens():
    assert completion_tokens("a" * 12) == 3
    assert completion_tokens([5, 6, 7, 8]) == 4
    assert completion_tokens(None) == 0
