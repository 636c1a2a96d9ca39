# SPDX-License-Identifier: Apache-2.0
"""Requests as the planner sees them: sizes and times, no content. Pure."""

from dataclasses import dataclass
from enum import StrEnum

from vllm_epd.errors import ConfigError


class Kind(StrEnum):
    """What a medium is."""

    IMAGE = "image"
    VIDEO = "video"
    AUDIO = "audio"


@dataclass(frozen=True, slots=True)
class Item:
    """One medium of a request.

    Attributes:
        kind: what it is.
        width: pixels, of a frame in a video; 0 for audio.
        height: the same.
        frames: of a video, as many as are taken of it; 1 for an image, 0 for audio.
        seconds: of audio; 0 for anything else.
        name: items of one name have the same bytes, so that their embeddings can be used again; None: like no other.
    """

    kind: Kind
    width: int = 0
    height: int = 0
    frames: int = 1
    seconds: float = 0.0
    name: int | None = None

    def __post_init__(self) -> None:
        if self.kind is Kind.AUDIO:
            if not self.seconds > 0:
                raise ConfigError(f"audio needs more than 0 seconds, got {self.seconds}")
        elif self.width < 1 or self.height < 1 or self.frames < 1:
            size = f"{self.width}x{self.height} of {self.frames} frames"
            raise ConfigError(f"{self.kind} needs a size of at least 1x1 and a frame, got {size}")


@dataclass(frozen=True, slots=True)
class Request:
    """One request.

    Attributes:
        number: its place in the workload, from 0.
        at: when it comes, in seconds from the start of the workload.
        text_tokens: of its prompt, without what its media become; at least 1.
        output_tokens: that are generated for it; at least 1.
        items: its media, in order.
    """

    number: int
    at: float
    text_tokens: int
    output_tokens: int
    items: tuple[Item, ...] = ()

    def __post_init__(self) -> None:
        if self.at < 0:
            raise ConfigError(f"request {self.number} comes at {self.at} s; times are from the start, 0 or later")
        if self.text_tokens < 1 or self.output_tokens < 1:
            sizes = f"{self.text_tokens} and {self.output_tokens}"
            raise ConfigError(f"request {self.number} needs at least one token of text and of output, got {sizes}")
