# SPDX-License-Identifier: Apache-2.0
"""The profile: what one model costs on some hardware, as one JSON file. Pure.

All times are linear in what causes them, so that a fit is a least-squares problem, a derivation from first principles
fills the same numbers, and an operator can read them.
"""

from typing import Literal

import msgspec

FORMAT = 1
"""Of the file; a profile of another one is refused."""


class Hardware(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What it holds for.

    Attributes:
        name: of the card, or of the processor.
        device: what a model runs on. On `cpu` all instances of a host share its cores.
        memory_bytes: of one device.
        cores: processor cores of a host.
    """

    name: str
    device: Literal["cuda", "cpu"]
    memory_bytes: int
    cores: int


class Tiled(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="tiled", tag_field="kind"):
    """Images are cut into tiles of one size, each encoded by itself: InternVL, MiniCPM-V.

    Attributes:
        rule: how the grid is chosen: `aspect` (InternVL: the grid nearest to the aspect ratio, whatever the size) or
            `area` (MiniCPM-V: as many slices as the area has tiles).
        tile: side of a tile in pixels.
        patch: side of a patch in pixels.
        most: tiles of one image, without the thumbnail.
        thumbnail: a picture of the whole image is added where it was cut.
        tokens: that the language model gets for a tile.
        extra: tokens around an image, such as markers.
        tile_extra: tokens around each of its tiles.
        row_extra: tokens between the rows of its grid.
        frame_tiles: tiles of a frame of a video, with its thumbnail.
        frame_extra: tokens around a frame.
    """

    rule: Literal["aspect", "area"]
    tile: int
    patch: int
    most: int
    thumbnail: bool
    tokens: int
    extra: int = 0
    tile_extra: int = 0
    row_extra: int = 0
    frame_tiles: int = 1
    frame_extra: int = 0


class Native(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="native", tag_field="kind"):
    """Images are encoded at their own size in one piece: Qwen-VL.

    Attributes:
        patch: side of a patch in pixels.
        merge: patches on a side of what becomes one token.
        least_pixels: an image is scaled up to that.
        most_pixels: an image is scaled down to that.
        window: side in pixels of the windows that attention looks at; 0 for the whole image.
        whole: share of the layers whose attention looks at the whole image all the same.
        frames_together: frames of a video that become one.
        extra: tokens around each image.
    """

    patch: int
    merge: int
    least_pixels: int
    most_pixels: int
    window: int = 0
    whole: float = 0.0
    frames_together: int = 2
    extra: int = 2


class Audio(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What audio becomes.

    Attributes:
        frames_per_s: that the encoder works on.
        tokens_per_s: that the language model gets.
    """

    frames_per_s: float
    tokens_per_s: float


class PreprocessCost(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Seconds of one core for one item: decoding, resizing, normalising.

    Attributes:
        base_s: whatever the item.
        per_pixel_s: of the source.
        per_patch_s: of the result.
        per_audio_s: for a second of audio.
    """

    base_s: float
    per_pixel_s: float
    per_patch_s: float
    per_audio_s: float = 0.0


class EncodeCost(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Seconds of a device for one batch of items.

    Attributes:
        base_s: whatever the batch: reading the weights, launching kernels.
        per_patch_s: for each patch, or frame of audio.
        per_pair_s: for each pair of patches that attention looks at.
    """

    base_s: float
    per_patch_s: float
    per_pair_s: float = 0.0


class PrefillCost(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Seconds of a device for the prompts' part of one step.

    Attributes:
        base_s: whatever the step; where it decodes too, the larger of both bases counts.
        per_token_s: for each token computed.
        per_pair_s: for each pair of a token computed and one that it looks at.
    """

    base_s: float
    per_token_s: float
    per_pair_s: float


class DecodeCost(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Seconds of a device for the generating part of one step.

    Attributes:
        base_s: whatever the step.
        per_sequence_s: for each sequence.
        per_context_s: for each token of context, of all sequences.
    """

    base_s: float
    per_sequence_s: float
    per_context_s: float


class Overhead(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Seconds of one core for a request, beside what is counted elsewhere: HTTP, tokenising, scheduling.

    Attributes:
        router_s: in the router, for each stage that is asked.
        encode_s: at an encode instance, for each of its calls.
        prefill_s: at a prefill instance.
        decode_s: at a decode instance.
        token_s: for each token of output, while its instance goes on with the next step.
        beside_s: for each stage that is asked, beside what a request waits for; it takes cores from others, where
            they are shared with devices.
        step_s: of a device, for each step that generates where others prefill: what taking over KV caches adds to it.
        contention: no seconds, but the share by which steps take longer, for each other engine that works on a core of
            the same host at that time: caches and memory are shared. Where the device is `cpu`.
    """

    router_s: float = 0.0
    encode_s: float = 0.0
    prefill_s: float = 0.0
    decode_s: float = 0.0
    token_s: float = 0.0
    beside_s: float = 0.0
    step_s: float = 0.0
    contention: float = 0.0


class Link(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How bytes travel between instances: one transfer takes `latency_s + bytes / bytes_per_s`."""

    latency_s: float
    bytes_per_s: float


class Memory(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Bytes on a device.

    Attributes:
        encoder: weights of the encoder, and of what projects its output.
        language: weights of the language model.
        kv_per_token: keys and values of one token, all layers.
        embedding_per_token: of what the encoder gives for one token of the language model.
        encode_per_patch: working memory of an encode batch, for each patch.
        prefill_per_token: working memory of a step, for each token.
        reserved: for the runtime, on each device.
        max_context: tokens that the model takes at most; no bytes, but a bound of the same kind.
    """

    encoder: int
    language: int
    kv_per_token: int
    embedding_per_token: int
    encode_per_patch: int
    prefill_per_token: int
    reserved: int
    max_context: int


class Fit(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How well a cost describes what was measured: errors relative to the measurement.

    That of a link is a rest of what is measured, and is relative to all of it.

    Attributes:
        points: measurements.
        mean: mean of the errors' absolute values.
        worst: the largest of them.
    """

    points: int
    mean: float
    worst: float


class Profile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One model on some hardware.

    Attributes:
        model: name of the model.
        origin: `measured` on that hardware, or `derived` from the architecture and the rates of a card.
        media: what images and videos become.
        links: by tier: `shm`, `cuda_ipc`, `rdma`, `tcp`.
        audio: what audio becomes; None if the model takes none.
        software: versions, by name of what they are of.
        fit: by cost, for what is measured.
        notes: how it came to be.
    """

    model: str
    origin: Literal["measured", "derived"]
    hardware: Hardware
    media: Tiled | Native
    preprocess: PreprocessCost
    encode: EncodeCost
    prefill: PrefillCost
    decode: DecodeCost
    links: dict[str, Link]
    memory: Memory
    audio: Audio | None = None
    overhead: Overhead = Overhead()
    software: dict[str, str] = {}
    fit: dict[str, Fit] = {}
    notes: str = ""
    format: int = FORMAT
