# SPDX-License-Identifier: Apache-2.0
"""Image processor of a MiniCPM-V model: an overview of the picture, and slices of a large one.

Each view keeps the picture's aspect ratio as far as whole patches allow, so views differ in size. A view is
handed on as a strip of its patches, one patch high, along with its size in patches.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers import BaseImageProcessor, BatchFeature
from transformers.processing_utils import ImagesKwargs

Size = tuple[int, int]


class MiniCPMVImagesKwargs(ImagesKwargs, total=False):
    """What a caller may set for this processor, beyond what all image processors know."""

    max_slice_nums: int
    scale_resolution: int
    patch_size: int
    image_feature_size: int
    use_image_id: bool


class MiniCPMVImageProcessor(BaseImageProcessor):
    """Slices pictures and writes their placeholders.

    Args:
        max_slice_nums: slices a picture is cut into at most.
        scale_resolution: a view has about the area of a square with this side.
        patch_size: side of a patch.
        image_feature_size: tokens that a view becomes, whatever its size.
        use_image_id: whether a placeholder starts with the number of its picture.
        image_mean: per channel, on a scale of 0 to 1.
        image_std: per channel, on a scale of 0 to 1.
    """

    model_input_names = ["pixel_values"]
    valid_kwargs = MiniCPMVImagesKwargs

    unk_token = "<unk>"
    im_start_token = "<image>"
    im_end_token = "</image>"
    slice_start_token = "<slice>"
    slice_end_token = "</slice>"
    im_id_start = "<image_id>"
    im_id_end = "</image_id>"

    def __init__(
        self,
        max_slice_nums: int = 9,
        scale_resolution: int = 448,
        patch_size: int = 14,
        image_feature_size: int = 64,
        use_image_id: bool = True,
        image_mean: Sequence[float] = (0.5, 0.5, 0.5),
        image_std: Sequence[float] = (0.5, 0.5, 0.5),
        **kwargs: object,
    ) -> None:
        super().__init__(**kwargs)
        self.max_slice_nums = max_slice_nums
        self.scale_resolution = scale_resolution
        self.patch_size = patch_size
        self.image_feature_size = image_feature_size
        self.use_image_id = use_image_id
        self.image_mean = list(image_mean)
        self.image_std = list(image_std)

    def get_sliced_grid(self, image_size: Size, max_slice_nums: int | None = None) -> Size | None:
        """Columns and rows that a picture of this width and height is cut into; None leaves it whole."""
        width, height = (int(side) for side in image_size)
        most = self.max_slice_nums if max_slice_nums is None else max_slice_nums
        wanted = min(math.ceil(width * height / self.scale_resolution**2), most)
        if wanted <= 1:
            return None
        grids = [
            (columns, count // columns)
            for count in (wanted - 1, wanted, wanted + 1)
            if 1 < count <= most
            for columns in range(1, count + 1)
            if count % columns == 0
        ]
        shape = math.log(width / height)
        return min(grids, key=lambda grid: abs(shape - math.log(grid[0] / grid[1])))

    def get_slice_image_placeholder(
        self,
        image_size: Size,
        image_idx: int = 0,
        max_slice_nums: int | None = None,
        use_image_id: bool | None = None,
    ) -> str:
        """The text that stands for a picture of this width and height in a prompt."""
        features = self.unk_token * self.image_feature_size
        text = f"{self.im_start_token}{features}{self.im_end_token}"
        if self.use_image_id if use_image_id is None else use_image_id:
            text = f"{self.im_id_start}{image_idx}{self.im_id_end}{text}"
        grid = self.get_sliced_grid(image_size, max_slice_nums)
        if grid is None:
            return text
        columns, rows = grid
        row = f"{self.slice_start_token}{features}{self.slice_end_token}" * columns
        return text + "\n".join([row] * rows)

    def preprocess(
        self,
        images: object,
        do_pad: bool | None = None,
        max_slice_nums: int | None = None,
        return_tensors: object = None,
        **kwargs: object,
    ) -> BatchFeature:
        """Cut up the pictures of each prompt.

        Args:
            images: a picture, the pictures of one prompt, or a list of them for each of several prompts.
            do_pad: ignored, views are never padded.
            max_slice_nums: overrides the processor's own.
            return_tensors: ignored, the values are lists of torch tensors.

        Returns:
            for each prompt, `pixel_values` and `tgt_sizes` (height and width in patches) of all its views in
            the order of the placeholders, and `image_sizes` (width and height) of its pictures.
        """
        prompts = [[_as_image(image) for image in prompt] for prompt in _nested(images)]
        data: dict[str, list[Any]] = {"pixel_values": [], "image_sizes": [], "tgt_sizes": []}
        for pictures in prompts:
            views = [view for picture in pictures for view in self._views(picture, max_slice_nums)]
            sizes = [(view.height // self.patch_size, view.width // self.patch_size) for view in views]
            data["pixel_values"].append([self._strip(view) for view in views])
            data["image_sizes"].append([torch.tensor(picture.size) for picture in pictures])
            data["tgt_sizes"].append(torch.tensor(sizes, dtype=torch.int32).reshape(-1, 2))
        return BatchFeature(data)

    def _views(self, picture: Image.Image, max_slice_nums: int | None) -> list[Image.Image]:
        """The overview, then the slices row by row."""
        grid = self.get_sliced_grid(picture.size, max_slice_nums)
        overview = _resize(picture, self._fit(*picture.size))
        if grid is None:
            return [overview]
        columns, rows = grid
        width, height = self._fit(picture.width / columns, picture.height / rows)
        large = _resize(picture, (width * columns, height * rows))
        corners = [(column * width, row * height) for row in range(rows) for column in range(columns)]
        return [overview, *(large.crop((x, y, x + width, y + height)) for x, y in corners)]

    def _fit(self, width: float, height: float) -> Size:
        """Whole patches of about this aspect ratio and about the area of a view."""
        scale = self.scale_resolution / math.sqrt(width * height)
        patch = self.patch_size
        return max(round(width * scale / patch), 1) * patch, max(round(height * scale / patch), 1) * patch

    def _strip(self, view: Image.Image) -> torch.Tensor:
        """The patches of a view side by side: channels x patch x (patch * number of patches)."""
        pixels = (np.asarray(view, dtype=np.float32) / 255 - self.image_mean) / self.image_std
        patch = self.patch_size
        patches = pixels.reshape(view.height // patch, patch, view.width // patch, patch, 3)
        strip = patches.transpose(4, 1, 0, 2, 3).reshape(3, patch, -1)
        return torch.from_numpy(np.ascontiguousarray(strip, dtype=np.float32))


def _resize(picture: Image.Image, size: Size) -> Image.Image:
    return picture.resize(size, Image.Resampling.BICUBIC)


def _nested(images: Any) -> list[list[Any]]:
    """Pictures by prompt, whatever depth they came in; a clip is an array of pictures."""
    if _is_picture(images):
        return [[images]]
    if all(_is_picture(entry) for entry in images):
        return [list(images)]
    return [list(entry) for entry in images]


def _is_picture(value: object) -> bool:
    return isinstance(value, Image.Image) or getattr(value, "ndim", 0) == 3


def _as_image(image: object) -> Image.Image:
    picture = image if isinstance(image, Image.Image) else Image.fromarray(np.asarray(image))
    return picture.convert("RGB")
