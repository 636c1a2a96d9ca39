# SPDX-License-Identifier: Apache-2.0
"""Pictures that no cache knows."""

import io
import struct

import numpy as np
from PIL import Image

from vllm_epd.planner.measure.pictures import picture


def test_pictures_differ_and_have_their_size():
    rng = np.random.default_rng(0)
    one, other = picture(rng, 50, 20), picture(rng, 50, 20)
    assert one != other
    assert struct.unpack(">II", one[16:24]) == (50, 20)


def test_others_can_read_them():
    image = Image.open(io.BytesIO(picture(np.random.default_rng(0), 33, 70)))
    image.load()
    assert (image.size, image.mode) == ((33, 70), "RGB")
