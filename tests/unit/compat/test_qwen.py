# SPDX-License-Identifier: Apache-2.0
"""Videos of Qwen2.5-VL that another instance encodes."""

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("vllm")

from vllm_epd.compat.qwen import EPDQwenDataParser  # noqa: E402

GRID = torch.tensor([[4, 2, 2]])


def test_a_video_comes_with_the_seconds_of_its_steps() -> None:
    parser = EPDQwenDataParser(2, video_needs_metadata=True, allow_missing_mm_embeddings=True)
    assert parser.placeholder_metadata_fields("video") == {"video_grid_thw", "second_per_grid_ts"}
    assert parser.placeholder_metadata_fields("image") == {"image_grid_thw"}
    data = {"video_grid_thw": GRID, "second_per_grid_ts": torch.tensor([[2.0]])}
    (item,) = parser.parse_mm_data({"video": data})["video"]
    assert (item["video_grid_thw"].tolist(), item["second_per_grid_ts"].item()) == ([4, 2, 2], 2.0)
    with pytest.raises(ValueError, match="second_per_grid_ts"):
        parser.parse_mm_data({"video": {"video_grid_thw": GRID}})
