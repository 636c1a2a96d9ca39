# SPDX-License-Identifier: Apache-2.0
"""Architectures: sizes as the models' public `config.json` states them, and what follows from them. Pure.

Published counts of parameters, which the sizes add up to: MiniCPM-V 2.6 8.10 B, InternVL2-8B 8.08 B, InternVL2-26B
25.5 B, Qwen2.5-VL-7B 8.29 B, Gemma 3 27B 27.4 B (model cards).
"""

from dataclasses import dataclass

from vllm_epd.planner.profile.profile import Native, Tiled

CHANNELS = 3


@dataclass(frozen=True, slots=True)
class Vision:
    """A vision transformer.

    Attributes:
        layers: how many.
        hidden: size of a patch's vector.
        intermediate: of the feed-forward part.
        heads: of attention.
        patch: side of a patch in pixels.
        positions: learned position vectors.
        gated: the feed-forward part has three matrices, not two.
        frames: of a video in one patch.
        once_unfused: under vLLM 0.6, its attention wrote all scores to memory.
    """

    layers: int
    hidden: int
    intermediate: int
    heads: int
    patch: int = 14
    positions: int = 0
    gated: bool = False
    frames: int = 1
    once_unfused: bool = False

    @property
    def layer_weights(self) -> int:
        """Numbers in the matrices of a layer."""
        return 4 * self.hidden**2 + (3 if self.gated else 2) * self.hidden * self.intermediate

    @property
    def patch_numbers(self) -> int:
        """Numbers that a patch is made of."""
        return CHANNELS * self.patch**2 * self.frames

    @property
    def parameters(self) -> int:
        """All numbers; biases and norms are 8 and the feed-forward part's for each layer."""
        small = 8 * self.hidden + self.intermediate
        ends = self.patch_numbers * self.hidden + self.positions * self.hidden
        return self.layers * (self.layer_weights + small) + ends


@dataclass(frozen=True, slots=True)
class Projector:
    """What makes vectors of the language model of those of patches.

    Attributes:
        parameters: all numbers.
        flops_per_patch: operations for each patch.
    """

    parameters: int
    flops_per_patch: float


@dataclass(frozen=True, slots=True)
class Language:
    """A decoder-only language model with grouped queries and a gated feed-forward part.

    Attributes:
        layers: how many.
        hidden: size of a token's vector.
        intermediate: of the feed-forward part.
        heads: of attention.
        kv_heads: keys and values that heads share.
        vocabulary: tokens there are.
        max_context: tokens that it takes at most, with the scaling of positions that its configuration asks for.
        head_size: of a head.
        tied: tokens go in and come out by the same matrix.
    """

    layers: int
    hidden: int
    intermediate: int
    heads: int
    kv_heads: int
    vocabulary: int
    max_context: int
    head_size: int = 128
    tied: bool = False

    @property
    def layer_weights(self) -> int:
        """Numbers in the matrices of a layer."""
        attention = self.hidden * self.head_size * 2 * (self.heads + self.kv_heads)
        return attention + 3 * self.hidden * self.intermediate

    @property
    def parameters(self) -> int:
        """All numbers."""
        ends = (1 if self.tied else 2) * self.vocabulary * self.hidden
        return self.layers * (self.layer_weights + 2 * self.hidden) + ends

    @property
    def kv_numbers(self) -> int:
        """Numbers that are kept of one token."""
        return 2 * self.layers * self.kv_heads * self.head_size


@dataclass(frozen=True, slots=True)
class Architecture:
    """A model that takes images.

    Attributes:
        name: of the model.
        media: what images and videos become.
        vision: its encoder.
        projector: between the two.
        language: its language model.
    """

    name: str
    media: Tiled | Native
    vision: Vision
    projector: Projector
    language: Language

    @property
    def parameters(self) -> int:
        """All numbers."""
        return self.vision.parameters + self.projector.parameters + self.language.parameters


def perceptron(merged: int, middle: int, out: int, patches: int) -> Projector:
    """Two matrices over so many patches that become one token."""
    weights = merged * middle + middle * out
    return Projector(weights + 2 * merged + middle + out, 2 * weights / patches)


def resampler(queries: int, vision: int, out: int, patches: int) -> Projector:
    """One layer of cross-attention, from so many queries to the patches of a tile, and a matrix behind it."""
    per_patch = 2 * (vision * out + 2 * out**2) + 4 * queries * out
    per_query = 2 * 3 * out**2
    weights = queries * out + vision * out + 5 * out**2
    return Projector(weights + 10 * out, per_patch + per_query * queries / patches)


def _qwen2_7b(vocabulary: int, max_context: int) -> Language:
    """Of Qwen2 and Qwen2.5."""
    return Language(28, 3584, 18944, heads=28, kv_heads=4, vocabulary=vocabulary, max_context=max_context)


_TILE_PATCHES = 1024
_POSITIONS = _TILE_PATCHES + 1
_INTERNVL2 = Tiled(
    rule="aspect", tile=448, patch=14, most=12, thumbnail=True, tokens=256, extra=2, frame_tiles=1, frame_extra=6
)

MINICPM_V_2_6 = Architecture(
    "MiniCPM-V-2.6",
    Tiled(
        rule="area",
        tile=448,
        patch=14,
        most=9,
        thumbnail=True,
        tokens=64,
        extra=3,
        tile_extra=2,
        row_extra=1,
        frame_tiles=1,
    ),
    Vision(layers=27, hidden=1152, intermediate=4304, heads=16, positions=4900, once_unfused=True),
    resampler(64, 1152, 3584, _TILE_PATCHES),
    _qwen2_7b(vocabulary=151666, max_context=32768),
)

INTERNVL2_8B = Architecture(
    "InternVL2-8B",
    _INTERNVL2,
    Vision(layers=24, hidden=1024, intermediate=4096, heads=16, positions=_POSITIONS),
    perceptron(4 * 1024, 4096, 4096, 4),
    Language(layers=32, hidden=4096, intermediate=14336, heads=32, kv_heads=8, vocabulary=92553, max_context=2 * 32768),
)

INTERNVL2_26B = Architecture(
    "InternVL2-26B",
    _INTERNVL2,
    Vision(layers=45, hidden=3200, intermediate=12800, heads=25, positions=_POSITIONS),
    perceptron(4 * 3200, 6144, 6144, 4),
    Language(layers=48, hidden=6144, intermediate=16384, heads=48, kv_heads=8, vocabulary=92553, max_context=3 * 32768),
)

QWEN2_5_VL_7B = Architecture(
    "Qwen2.5-VL-7B",
    Native(patch=14, merge=2, least_pixels=3136, most_pixels=12_845_056, window=112, whole=4 / 32),
    Vision(layers=32, hidden=1280, intermediate=3420, heads=16, gated=True, frames=2),
    perceptron(4 * 1280, 4 * 1280, 3584, 4),
    _qwen2_7b(vocabulary=152064, max_context=128_000),
)

# Its images are always of one size and light beside its language model. All layers keep keys and values of all tokens
# here, as where an engine does not use that five of six look at the last 1,024 alone.
GEMMA_3_27B = Architecture(
    "Gemma-3-27B",
    Tiled(rule="aspect", tile=896, patch=14, most=1, thumbnail=False, tokens=256, extra=4),
    Vision(layers=27, hidden=1152, intermediate=4304, heads=16, positions=4096),
    Projector(1152 * 5376, 2 * 1152 * 5376 / 16),
    Language(
        layers=62,
        hidden=5376,
        intermediate=21504,
        heads=32,
        kv_heads=16,
        vocabulary=262208,
        max_context=131072,
        tied=True,
    ),
)

ARCHITECTURES = (MINICPM_V_2_6, INTERNVL2_8B, INTERNVL2_26B, QWEN2_5_VL_7B, GEMMA_3_27B)
