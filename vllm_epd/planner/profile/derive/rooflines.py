# SPDX-License-Identifier: Apache-2.0
"""Times of single pieces of work on a card, by the roofline: the larger of operations and of bytes. Pure."""

from dataclasses import dataclass

from vllm_epd.planner.profile.derive.architectures import Architecture, Language, Vision
from vllm_epd.planner.profile.derive.cards import Card
from vllm_epd.planner.profile.derive.software import Software

BYTES = 2
"""Of a number, in BF16 or FP16."""

ENCODER_KERNELS = 14
"""Of a layer: two norms, four products with their biases, an activation, attention, two sums, four rearrangements."""

UNFUSED_KERNELS = 6
"""More of them where attention is a product, a scaling, a mask, a softmax, a conversion and a product."""

LANGUAGE_KERNELS = 12
"""Of a layer: two norms, four products, rotation, storing keys and values, attention, an activation, two biases."""

SCORE_BYTES = 24
"""Of each score read and written: by product, scaling, mask, softmax in FP32, conversion and product."""

SCORE_HELD = 8
"""Bytes of each score held at once: in FP16, in FP32 after the softmax, and in FP16 again."""


@dataclass(frozen=True, slots=True)
class Rates:
    """What one model attains on a card.

    Attributes:
        model: the architecture.
        card: the device.
        software: that serves.
    """

    model: Architecture
    card: Card
    software: Software

    def products_s(self, flops: float) -> float:
        """Of matrix products."""
        return flops / (self.card.flops * self.card.products)

    def attention_s(self, flops: float) -> float:
        """Of fused attention."""
        return flops / (self.card.flops * self.card.attention)

    def bytes_s(self, nbytes: float) -> float:
        """Of memory read or written."""
        return nbytes / (self.card.bytes_per_s * self.card.memory)

    @property
    def unfused(self) -> bool:
        """Whether scores of the encoder's attention go through memory."""
        return self.model.vision.once_unfused and not self.software.fused

    @property
    def encode_patch_s(self) -> float:
        """For each patch: its products, and what the steps between them read and write."""
        vision = self.model.vision
        flops = 2 * vision.layers * vision.layer_weights + 2 * vision.patch_numbers * vision.hidden
        between = vision.layers * _between(vision.hidden, vision.intermediate)
        return self.products_s(flops + self.model.projector.flops_per_patch) + self.bytes_s(between)

    @property
    def encode_pair_s(self) -> float:
        """For each pair of patches that attention looks at."""
        vision = self.model.vision
        flops = 4 * vision.layers * vision.hidden
        if self.unfused:
            return self.products_s(flops) + self.bytes_s(vision.layers * vision.heads * SCORE_BYTES)
        return self.attention_s(flops)

    @property
    def encode_launch_s(self) -> float:
        """Of the host, for the kernels of a batch."""
        kernels = ENCODER_KERNELS + UNFUSED_KERNELS * self.unfused
        return self.model.vision.layers * kernels * self.software.launch_s

    @property
    def prefill_token_s(self) -> float:
        """For each token computed: its products, and what the steps between them read and write."""
        language = self.model.language
        between = language.layers * _between(language.hidden, language.intermediate)
        return self.products_s(2 * language.layers * language.layer_weights) + self.bytes_s(between)

    @property
    def prefill_pair_s(self) -> float:
        """For each pair of tokens that attention looks at; those that come later are left out."""
        language = self.model.language
        return self.attention_s(4 * language.layers * language.heads * language.head_size)

    @property
    def weights_s(self) -> float:
        """To read the language model once, without the tokens' vectors that go in."""
        language = self.model.language
        return self.bytes_s(BYTES * (language.layers * language.layer_weights + language.vocabulary * language.hidden))

    @property
    def language_launch_s(self) -> float:
        """Of the host, for the kernels of a step."""
        if self.software.graphs:
            return 0.0
        return self.model.language.layers * LANGUAGE_KERNELS * self.software.launch_s

    @property
    def decode_products_s(self) -> float:
        """For the products of each sequence that a step generates for."""
        language = self.model.language
        weights = language.layers * language.layer_weights + language.vocabulary * language.hidden
        return self.products_s(2 * weights)

    @property
    def decode_between_s(self) -> float:
        """For each sequence: what is read and written between the products, and its logits in FP32."""
        language = self.model.language
        between = language.layers * _between(language.hidden, language.intermediate)
        return self.bytes_s(between + 2 * 4 * language.vocabulary)

    @property
    def decode_context_s(self) -> float:
        """For each token of context: reading its keys and values."""
        return self.bytes_s(BYTES * self.model.language.kv_numbers)


def _between(hidden: int, intermediate: int) -> int:
    """Bytes of a layer read and written beside its products: norms, sums and rearrangements, and the activation."""
    return BYTES * (16 * hidden + 2 * intermediate)


def encode_held(vision: Vision, tile_patches: int, unfused: bool) -> int:
    """Bytes of one patch at the peak of a batch: pixels, what goes around a layer, and the widest of its steps."""
    scores = SCORE_HELD * vision.heads * tile_patches if unfused else 0
    attention = BYTES * 4 * vision.hidden + scores
    feed_forward = BYTES * (3 if vision.gated else 2) * vision.intermediate
    return BYTES * (vision.patch_numbers + 2 * vision.hidden) + max(attention, feed_forward)


def prefill_held(language: Language) -> int:
    """Bytes of one token at the peak of a step: what goes in, what goes around a layer, and its feed-forward part."""
    return BYTES * (3 * language.hidden + 3 * language.intermediate)
