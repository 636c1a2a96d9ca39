# SPDX-License-Identifier: Apache-2.0
"""How much work a media part or a prompt is, before anybody has looked into it. Pure.

The unit is the token of the language model, for media too: an encoder's work and the prompt that it fills both grow
with the number of tokens that an item becomes.

- Image: one token for 28 x 28 pixels. That is Qwen2-VL's patch of 14 x 14 after its merge of 2 x 2, and InternVL's
  256 tokens for a tile of 448 x 448. Width and height are read from the first bytes of inline data.
- Audio: 25 tokens a second (Qwen2-Audio: a token for 40 ms). Seconds are bytes by the byte rate that a WAV header
  tells, otherwise by 128 kbit/s, the usual rate of MP3.
- Video: 768 tokens a second (Qwen2-VL samples two frames a second, takes two frames together, and gives such a pair
  at most 768 tokens). Seconds are bytes by 1 Mbit/s.
- Text: a token for 4 bytes of UTF-8, the usual rule of thumb for subword vocabularies.

What is behind a URL is taken for as much as its kind has turned out to be on average.
"""

import struct
from base64 import b64decode
from collections.abc import Mapping, Sequence
from math import prod
from typing import Any

from vllm_epd.router.inline import NOTHING, Inline
from vllm_epd.router.media import MEDIA_KEYS, JsonObject, MediaPart

PIXELS_PER_TOKEN = 28 * 28
BYTES_PER_TOKEN = 4
AUDIO_TOKENS_PER_S = 25.0
VIDEO_TOKENS_PER_S = 768.0
MP3_BYTES_PER_S = 128_000 / 8
VIDEO_BYTES_PER_S = 1_000_000 / 8
TILE_TOKENS = 256

#: What an item is taken for before one of its kind has been seen: a megapixel, or ten seconds.
FIRST_GUESS: Mapping[str, float] = {
    "image": 2**20 / PIXELS_PER_TOKEN,
    "audio": 10 * AUDIO_TOKENS_PER_S,
    "video": 10 * VIDEO_TOKENS_PER_S,
}

_MODALITY = {key: next(each for each in FIRST_GUESS if each in key) for key in MEDIA_KEYS.values()}

#: What metadata calls the grid of an item and the number of its tiles.
_SIZES = (("image_grid_thw", "image_num_patches"), ("video_grid_thw", "video_num_patches"))

#: Characters of base64 that are looked at, and those of a JPEG, which may have as much before its size.
_HEAD = 256
_JPEG_HEAD = 2**17
#: Characters of a `data:` URL before its data, with room for parameters.
_URL_HEAD = 256
_WEIGHT = 0.1
#: JPEG markers with the size of the image: all starts of frames, but none of DHT, JPG and DAC among them.
_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_PADDING = 0xFF
_JPEG = b"\xff\xd8"


class Means:
    """How many tokens the items of each kind have been on average, the latest ones weighing most."""

    def __init__(self) -> None:
        self._means = dict(FIRST_GUESS)

    def note(self, modality: str, tokens: float) -> None:
        """An item has turned out to be of so many tokens."""
        self._means[modality] += _WEIGHT * (tokens - self._means[modality])

    def of(self, modality: str) -> float:
        """What an item is to be taken for of which nothing else is known."""
        return self._means[modality]


def media_tokens(media: MediaPart, means: Means, inline: Inline = NOTHING) -> float:
    """What one media part is estimated at, whose data may be cut out as `inline`; at least 1."""
    modality = modality_of(media.part)
    known = None if media.data is None else _inline_tokens(modality, media.data.text, inline)
    return max(1.0, means.of(modality) if known is None else known)


def inline_size(media: MediaPart, inline: Inline = NOTHING) -> tuple[int, int] | None:
    """Width and height of an image whose data is in the request and tells them."""
    data = media.data if modality_of(media.part) == "image" else None
    return None if data is None else _image_size(data.text, inline)


def modality_of(part: JsonObject) -> str:
    """`image`, `audio` or `video`."""
    key = MEDIA_KEYS.get(part.get("type", "")) or next(key for key in MEDIA_KEYS.values() if key in part)
    return _MODALITY[key]


def metadata_tokens(metadata: JsonObject) -> int | None:
    """How many tokens an encoded item is, by what sizes its placeholder; None if that is of an unknown form.

    Qwen's grids count patches, of which 2 x 2 become a token; InternVL's numbers count tiles.
    """
    for grid_key, tiles_key in _SIZES:
        grid, tiles = metadata.get(grid_key), metadata.get(tiles_key)
        if isinstance(grid, list) and {*map(type, grid)} == {int}:
            return max(1, prod(grid) // 4)
        if isinstance(tiles, int):
            return max(1, tiles * TILE_TOKENS)
    return None


def chat_tokens(messages: Sequence[Any]) -> float:
    """The text of chat messages."""
    return sum(_content_tokens(message.get("content")) for message in messages)


def completion_tokens(prompt: Any) -> float:
    """One prompt of a completion: text, or token ids."""
    if isinstance(prompt, str):
        return _text_tokens(prompt)
    return float(len(prompt)) if isinstance(prompt, list) else 0.0


def image_size(head: bytes) -> tuple[int, int] | None:
    """Width and height of a PNG, JPEG, GIF, WebP or BMP image by its first bytes; None if they do not tell."""
    try:
        if head[:8] == b"\x89PNG\r\n\x1a\n":
            return struct.unpack_from(">II", head, 16)
        if head[:3] == b"GIF":
            return struct.unpack_from("<HH", head, 6)
        if head[:2] == b"BM":
            width, height = struct.unpack_from("<ii", head, 18)
            return width, abs(height)
        if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
            return _webp_size(head)
        if head[:2] == _JPEG:
            return _jpeg_size(head)
    except (struct.error, IndexError):
        pass
    return None


def _inline_tokens(modality: str, marked: str, inline: Inline) -> float | None:
    """By the beginning of a text and its length."""
    if modality == "image":
        size = _image_size(marked, inline)
        return None if size is None else size[0] * size[1] / PIXELS_PER_TOKEN
    text, length = inline.opened(marked, _HEAD + _URL_HEAD)
    head = _head(text, _HEAD)
    nbytes = (length - _start(text)) * 3 / 4
    if modality == "video":
        return nbytes / VIDEO_BYTES_PER_S * VIDEO_TOKENS_PER_S
    return nbytes / _audio_bytes_per_s(head) * AUDIO_TOKENS_PER_S


def _image_size(marked: str, inline: Inline) -> tuple[int, int] | None:
    head = _head(inline.opened(marked, _HEAD + _URL_HEAD)[0], _HEAD)
    size = image_size(head)
    if size is None and head.startswith(_JPEG):
        size = image_size(_head(inline.opened(marked, _JPEG_HEAD + _URL_HEAD)[0], _JPEG_HEAD))
    return size


def _audio_bytes_per_s(head: bytes) -> float:
    """The byte rate of WAV data whose first chunk is its format, as nearly all have it."""
    if head[:4] == b"RIFF" and head[8:16] == b"WAVEfmt " and len(head) >= 32:
        rate: int = struct.unpack_from("<I", head, 28)[0]
        return rate or MP3_BYTES_PER_S
    return MP3_BYTES_PER_S


def _start(text: str) -> int:
    """Where the base64 text of a `data:` URL begins, or of what is base64 as a whole."""
    return text.find(",") + 1 if text[:5].lower() == "data:" else 0


def _head(text: str, length: int) -> bytes:
    """The bytes that the first characters of base64 text spell; none where it is not base64."""
    start = _start(text)
    piece = text[start : start + length]
    try:
        return b64decode(piece[: len(piece) // 4 * 4])
    except ValueError:
        return b""


def _webp_size(head: bytes) -> tuple[int, int] | None:
    form = head[12:16]
    if form == b"VP8X":
        return 1 + int.from_bytes(head[24:27], "little"), 1 + int.from_bytes(head[27:30], "little")
    if form == b"VP8L":
        (bits,) = struct.unpack_from("<I", head, 21)
        return 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    if form == b"VP8 ":
        width, height = struct.unpack_from("<HH", head, 26)
        return width & 0x3FFF, height & 0x3FFF
    return None


def _jpeg_size(head: bytes) -> tuple[int, int]:
    """Walk the segments up to the start of a frame."""
    at = 2
    while True:
        marker = head[at + 1]
        if marker == _PADDING:
            at += 1
        elif marker in _FRAMES:
            height, width = struct.unpack_from(">HH", head, at + 5)
            return width, height
        else:
            (length,) = struct.unpack_from(">H", head, at + 2)
            at += 2 + max(2, length)


def _content_tokens(content: Any) -> float:
    if isinstance(content, str):
        return _text_tokens(content)
    parts = content if isinstance(content, list) else ()
    texts = (part.get("text") if isinstance(part, dict) else part for part in parts)
    return sum(_text_tokens(text) for text in texts if isinstance(text, str))


def _text_tokens(text: str) -> float:
    return (len(text) if text.isascii() else len(text.encode(errors="replace"))) / BYTES_PER_TOKEN
