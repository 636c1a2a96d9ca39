# SPDX-License-Identifier: Apache-2.0
"""What a medium becomes: tiles and patches for the encoder, tokens for the language model. Pure."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Encoded:
    """One item, as a model takes it.

    Attributes:
        tiles: into which it is cut, and which can be encoded apart; 1 where it cannot be cut.
        patches: that the encoder works on, of all tiles; frames for audio.
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
