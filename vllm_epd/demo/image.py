# SPDX-License-Identifier: Apache-2.0
"""Seeded pictures to send to a model."""

import io
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from numpy import uint8
    from numpy.random import Generator
    from numpy.typing import NDArray
    from PIL.ImageDraw import ImageDraw

_SHAPES = 7
_NOISE = 12


def demo_image(seed: int, width: int, height: int) -> bytes:
    """Return a PNG with a colour gradient, stripes, a few shapes and noise.

    The same arguments give the same picture; another seed gives a plainly different one.

    Args:
        seed: 0 or more.
        width: in pixels.
        height: in pixels.
    """
    import numpy as np
    from PIL import Image, ImageDraw

    rng = np.random.default_rng(seed)
    image = Image.fromarray(_background(rng, width, height))
    draw = ImageDraw.Draw(image)
    for _ in range(_SHAPES):
        _draw_shape(draw, rng, width, height)
    noise = rng.integers(-_NOISE, _NOISE + 1, size=(height, width, 3))
    noisy = np.clip(np.asarray(image).astype(np.int64) + noise, 0, 255).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(noisy).save(buffer, format="PNG")
    return buffer.getvalue()


def _background(rng: "Generator", width: int, height: int) -> "NDArray[uint8]":
    """A gradient between two colours in a random direction, with stripes across it."""
    import numpy as np

    angle = rng.uniform(0, 2 * np.pi)
    x, y = np.meshgrid(np.linspace(-0.5, 0.5, width), np.linspace(-0.5, 0.5, height))
    along = x * np.cos(angle) + y * np.sin(angle)
    stripes = np.sin(2 * np.pi * rng.uniform(2, 9) * along) * rng.uniform(0.0, 0.25)
    mix = np.clip(along + 0.5 + stripes, 0, 1)[..., None]
    start, end = rng.uniform(0, 255, size=(2, 3))
    picture: NDArray[uint8] = (start * (1 - mix) + end * mix).astype(np.uint8)
    return picture


def _draw_shape(draw: "ImageDraw", rng: "Generator", width: int, height: int) -> None:
    """An ellipse or a rectangle of random place, size and colour."""
    left, top = rng.uniform(-0.1, 0.8, size=2)
    wide, high = rng.uniform(0.1, 0.5, size=2)
    box = (left * width, top * height, (left + wide) * width, (top + high) * height)
    red, green, blue = (int(value) for value in rng.integers(0, 256, size=3))
    shape = draw.ellipse if rng.integers(2) else draw.rectangle
    shape(box, fill=(red, green, blue))
