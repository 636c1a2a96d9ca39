# SPDX-License-Identifier: Apache-2.0
"""What a medium becomes: tiles and patches for the encoder, tokens for the language model. Pure."""

import math
from dataclasses import dataclass
from functools import lru_cache

from vllm_epd.errors import ConfigError
from vllm_epd.planner.profile.profile import Audio, Native, Profile, Tiled
from vllm_epd.planner.workload.requests import Item, Kind

CACHED = 4096
"""Sizes of media that are kept, of each kind."""

NARROWEST = 200
"""Times that an image may be longer than wide; models that take images at their own size refuse others."""


@dataclass(frozen=True, slots=True)
class Encoded:
    """One item, as a model takes it.

    Attributes:
        tiles: into which it is cut, and which can be encoded apart; 1 where it cannot be cut.
        patches: that the encoder works on, of all tiles, without class tokens; frames for audio.
        pairs: of patches that its attention looks at.
        tokens: that the language model gets, with markers around them.
        pixels: of the source, of all frames; 0 for audio.
        audio_s: seconds of audio.
    """

    tiles: int
    patches: int
    pairs: int
    tokens: int
    pixels: int
    audio_s: float = 0.0


def measure(profile: Profile, item: Item) -> Encoded:
    """What a model takes of an item.

    Raises:
        ConfigError: it takes none such.
    """
    if item.kind is Kind.AUDIO:
        if profile.audio is None:
            raise ConfigError(f"{profile.model} takes no audio, by its profile; leave audio out of the workload")
        return _audio(profile.audio, item.seconds)
    return measure_visual(profile.media, item)


def measure_visual(media: Tiled | Native, item: Item) -> Encoded:
    """What becomes of an image or a video."""
    if isinstance(media, Native):
        return _native(media, item.width, item.height, item.frames, item.kind is Kind.VIDEO)
    if item.kind is Kind.VIDEO:
        return _tiled_video(media, item.width, item.height, item.frames)
    return _tiled_image(media, item.width, item.height)


@lru_cache(CACHED)
def _audio(audio: Audio, seconds: float) -> Encoded:
    frames = math.ceil(seconds * audio.frames_per_s)
    return Encoded(1, frames, frames**2, math.ceil(seconds * audio.tokens_per_s), 0, seconds)


@lru_cache(CACHED)
def _tiled_image(media: Tiled, width: int, height: int) -> Encoded:
    columns, rows = (_nearest_grid if media.rule == "aspect" else _area_grid)(media, width, height)
    count = columns * rows
    cut = count > 1
    whole = _whole_patches(media, width, height)
    patches = [_slice_patches(media, width, height, columns, rows)] * count if cut else [whole]
    if cut and media.thumbnail:
        patches.append(whole)
    markers = media.extra + media.tile_extra * len(patches) + media.row_extra * (rows - 1)
    return Encoded(
        tiles=len(patches),
        patches=sum(patches),
        pairs=sum(each**2 for each in patches),
        tokens=media.tokens * len(patches) + markers,
        pixels=width * height,
    )


@lru_cache(CACHED)
def _tiled_video(media: Tiled, width: int, height: int, frames: int) -> Encoded:
    tiles = frames * media.frame_tiles
    patches = _whole_patches(media, width, height)
    return Encoded(
        tiles=tiles,
        patches=tiles * patches,
        pairs=tiles * patches**2,
        tokens=tiles * (media.tokens + media.tile_extra) + frames * media.frame_extra,
        pixels=width * height * frames,
    )


def _nearest_grid(media: Tiled, width: int, height: int) -> tuple[int, int]:
    """Columns and rows nearest to the aspect ratio; of equally near ones the largest that is half filled."""
    best, least = (1, 1), math.inf
    for columns, rows in _grids(media.most):
        off = abs(width / height - columns / rows)
        filled = width * height > 0.5 * media.tile**2 * columns * rows
        if off < least or (off == least and filled):
            best, least = (columns, rows), off
    return best


@lru_cache
def _grids(most: int) -> list[tuple[int, int]]:
    """All grids of so many tiles, smaller ones first; those of one size in no order that matters."""
    grids = {(columns, rows) for columns in range(1, most + 1) for rows in range(1, most // columns + 1)}
    return sorted(grids, key=lambda grid: (grid[0] * grid[1], grid))


def _area_grid(media: Tiled, width: int, height: int) -> tuple[int, int]:
    """Columns and rows of about as many slices as the area has tiles, nearest to the aspect ratio."""
    wanted = min(math.ceil(width * height / media.tile**2), media.most)
    if wanted <= 1:
        return 1, 1
    shape = math.log(width / height)
    grids = [
        (columns, count // columns)
        for count in (wanted - 1, wanted, wanted + 1)
        if 1 < count <= media.most
        for columns in range(1, count + 1)
        if count % columns == 0
    ]
    return min(grids, key=lambda grid: abs(shape - math.log(grid[0] / grid[1])))


def _whole_patches(media: Tiled, width: int, height: int) -> int:
    """Of the whole image as one tile."""
    if media.rule == "aspect":
        return (media.tile // media.patch) ** 2
    return _resized_patches(media, width, height)


def _slice_patches(media: Tiled, width: int, height: int, columns: int, rows: int) -> int:
    """Of one tile of the grid."""
    if media.rule == "aspect":
        return (media.tile // media.patch) ** 2
    refined = _divisible(width, columns), _divisible(height, rows)
    return _resized_patches(media, refined[0] / columns, refined[1] / rows)


def _resized_patches(media: Tiled, width: float, height: float) -> int:
    """Patches of a slice with this aspect ratio and about the area of a tile."""
    shape = width / height
    across = int(media.tile / math.sqrt(shape))
    return (_divisible(int(across * shape), media.patch) // media.patch) * (
        _divisible(across, media.patch) // media.patch
    )


def _divisible(length: int, by: int) -> int:
    return max(round(length / by) * by, by)


@lru_cache(CACHED)
def _native(media: Native, width: int, height: int, frames: int, video: bool) -> Encoded:
    columns, rows = _cells(media, width, height)
    steps = -(-frames // media.frames_together) if video else 1
    patches = columns * rows * media.merge**2
    return Encoded(
        tiles=steps,
        patches=steps * patches,
        pairs=steps * round(_pairs(media, columns, rows)),
        tokens=steps * columns * rows + media.extra,
        pixels=width * height * frames,
    )


def _cells(media: Native, width: int, height: int) -> tuple[int, int]:
    """Columns and rows of what becomes a token each: within the limits on pixels, of about the same aspect ratio."""
    cell = media.patch * media.merge
    if max(width, height) > NARROWEST * min(width, height):
        most = f"{NARROWEST} times as long as wide at most"
        raise ConfigError(f"an image of {width}x{height} is refused by models such as this; images may be {most}")
    columns, rows = round(width / cell), round(height / cell)
    area = columns * rows * cell**2
    if area > media.most_pixels:
        scale = math.sqrt(width * height / media.most_pixels)
        columns, rows = (max(1, math.floor(side / scale / cell)) for side in (width, height))
    elif area < media.least_pixels:
        scale = math.sqrt(media.least_pixels / (width * height))
        columns, rows = (math.ceil(side * scale / cell) for side in (width, height))
    return columns, rows


def _pairs(media: Native, columns: int, rows: int) -> float:
    """Pairs of patches that a layer looks at, averaged over the layers."""
    unit = media.merge**4
    everywhere = float(unit * (columns * rows) ** 2)
    if not media.window:
        return everywhere
    side = media.window // media.patch // media.merge
    within = float(unit * _squares(columns, side) * _squares(rows, side))
    return media.whole * everywhere + (1 - media.whole) * within


def _squares(length: int, side: int) -> int:
    """Sum of the squares of the pieces of a length, each of this side but for the last."""
    full, rest = divmod(length, side)
    return full * side**2 + rest**2
