# SPDX-License-Identifier: Apache-2.0
"""MiniCPM-V's nested sizes, as its parser reads them."""

import pytest

torch = pytest.importorskip("torch")

from vllm_epd.compat.metadata import unnest  # noqa: E402

SIZE = torch.tensor([640, 360])


@pytest.mark.parametrize("nested", [SIZE, [SIZE], [[SIZE]], torch.tensor([[640, 360]])])
def test_one_size_per_image(nested: object) -> None:
    assert unnest(nested, 1) == [640, 360]


@pytest.mark.parametrize("nested", [[SIZE, SIZE], [[SIZE, SIZE]], torch.tensor([[640, 360], [640, 360]])])
def test_one_size_per_frame(nested: object) -> None:
    assert unnest(nested, 2) == [[640, 360], [640, 360]]


def test_a_video_of_one_frame_keeps_its_list_of_frames() -> None:
    assert unnest([[SIZE]], 2) == [[640, 360]]
