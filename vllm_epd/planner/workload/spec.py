# SPDX-License-Identifier: Apache-2.0
"""What a workload is described by, in YAML. Pure but for reading the file.

Example::

    seed: 1
    requests: 500
    arrivals: {kind: gamma, rate: 2.5, cv: 2}
    classes:
      - weight: 3
        text_tokens: {kind: lognormal, mean: 200, cv: 1}
        output_tokens: 100
        images: {kind: choices, values: [1, 2, 4]}
        image_sizes: {1280x720: 3, 4032x3024: 1}
      - text_tokens: {kind: uniform, low: 500, high: 4000}
        output_tokens: 300
    reuse: {share: 0.3, pool: 200, zipf: 1}

A trace comes with its own requests and needs no classes: ``arrivals: {kind: trace, file: access.log}``.
"""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from vllm_epd.config import read_mapping
from vllm_epd.errors import ConfigError
from vllm_epd.planner.workload.checks import check, check_positive, check_rate, check_weights, parse_size

#: Without a number of requests or a duration.
DEFAULT_REQUESTS = 200
#: More are a mistake in the rate or the duration, and would fill the memory.
MOST_REQUESTS = 10_000_000


class Uniform(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="kind", tag="uniform"):
    """Whole numbers from `low` to `high`, both included, all equally often."""

    low: int
    high: int

    def __post_init__(self) -> None:
        check(0 <= self.low <= self.high, f"expected 0 <= low <= high, got {self.low} and {self.high}")


class LogNormal(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="kind", tag="lognormal"):
    """Log-normal with that mean and that coefficient of variation (standard deviation over mean)."""

    mean: float
    cv: float

    def __post_init__(self) -> None:
        good = 0 < self.mean < math.inf and 0 < self.cv < math.inf
        check(good, f"expected a mean and a cv above 0, got {self.mean} and {self.cv}")


class Choices(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="kind", tag="choices"):
    """One of `values`, by `weights`; equally often without them."""

    values: tuple[float, ...]
    weights: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        good = bool(self.values) and all(0 <= each < math.inf for each in self.values)
        check(good, f"expected values of at least 0, got {list(self.values)}")
        check_weights(self.weights or (1.0,) * len(self.values), len(self.values))


Numbers = int | float | Uniform | LogNormal | Choices
"""A number, or how it is drawn for each request."""


Sizes = tuple[str, ...] | dict[str, float]
"""Several sizes, or the weight of each."""


class Poisson(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="kind", tag="poisson"):
    """`rate` requests per second, independent of each other."""

    rate: float

    def __post_init__(self) -> None:
        check_rate(self.rate)


class Gamma(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="kind", tag="gamma"):
    """The time between requests has a gamma distribution; `cv` above 1 is burstier than Poisson, below 1 steadier."""

    rate: float
    cv: float

    def __post_init__(self) -> None:
        check_rate(self.rate)
        check_positive("cv", self.cv)


class Bursts(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="kind", tag="bursts"):
    """`size` requests at once; bursts come as a Poisson process that makes `rate` requests per second in all."""

    rate: float
    size: int

    def __post_init__(self) -> None:
        check_rate(self.rate)
        check(self.size >= 1, f"expected bursts of at least 1 request, got {self.size}")


class Steady(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="kind", tag="steady"):
    """One request after the other, always the same time apart."""

    rate: float

    def __post_init__(self) -> None:
        check_rate(self.rate)


class Trace(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="kind", tag="trace"):
    """Requests of a file, see `files`; with a `rate`, all times are stretched to that mean rate."""

    file: str
    rate: float | None = None

    def __post_init__(self) -> None:
        if self.rate is not None:
            check_rate(self.rate)


Arrivals = Poisson | Gamma | Bursts | Steady | Trace


class RequestClass(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Requests of one kind.

    Attributes:
        text_tokens: of the prompt, without media.
        output_tokens: generated.
        weight: how often, against other classes.
        images: in each request.
        image_sizes: `WIDTHxHEIGHT` in pixels; each image has one of them, by their weights if they have some.
        videos: in each request.
        frames: taken of each video.
        frame_sizes: of videos, as `image_sizes`.
        audios: in each request.
        audio_s: seconds of each.
    """

    text_tokens: Numbers = 100
    output_tokens: Numbers = 100
    weight: float = 1.0
    images: Numbers = 0
    image_sizes: Sizes = ("1024x1024",)
    videos: Numbers = 0
    frames: Numbers = 16
    frame_sizes: Sizes = ("1280x720",)
    audios: Numbers = 0
    audio_s: Numbers = 10

    def __post_init__(self) -> None:
        for name in ("text_tokens", "output_tokens", "images", "videos", "frames", "audios", "audio_s"):
            value = getattr(self, name)
            if isinstance(value, (int, float)):
                check(math.isfinite(value) and value >= 0, f"expected {name} of at least 0, got {value}")
        for name in ("image_sizes", "frame_sizes"):
            sizes = getattr(self, name)
            check(bool(sizes), f"expected at least one of {name}")
            for size in sizes:
                parse_size(size)
            if isinstance(sizes, Mapping):
                check_weights(list(sizes.values()), len(sizes))
        check_positive("weight", self.weight)


class Reuse(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How often the same medium comes again.

    Attributes:
        share: of media that are drawn from a pool; the others are like no other.
        pool: media in it, of each kind and size.
        zipf: exponent by which some of them are drawn more often; 0 for all alike.
    """

    share: float = 0.0
    pool: int = 100
    zipf: float = 1.0

    def __post_init__(self) -> None:
        check(0 <= self.share <= 1, f"expected a share from 0 to 1, got {self.share}")
        check(self.pool >= 1, f"expected a pool of at least 1, got {self.pool}")
        check(0 <= self.zipf < math.inf, f"expected a zipf exponent of at least 0, got {self.zipf}")


class WorkloadSpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A workload.

    Attributes:
        arrivals: when requests come.
        classes: what is in them.
        requests: how many; None where `duration_s` says so.
        duration_s: requests that come within so many seconds.
        reuse: how often media come again.
        seed: of all that is drawn.
    """

    arrivals: Arrivals
    classes: tuple[RequestClass, ...] = (RequestClass(),)
    requests: int | None = None
    duration_s: float | None = None
    reuse: Reuse = Reuse()
    seed: int = 0

    def __post_init__(self) -> None:
        both = self.requests is not None and self.duration_s is not None
        check(not both, "expected requests or duration_s, not both")
        check(self.requests is None or self.requests >= 1, f"expected at least 1 request, got {self.requests}")
        if self.duration_s is not None:
            check_positive("duration_s", self.duration_s)
        count = self.requests or (self.duration_s or 0) * (self.rate or 0)
        check(count <= MOST_REQUESTS, f"expected {MOST_REQUESTS:,} requests at most, got {count:,.0f}")
        check(bool(self.classes), "expected at least one class of requests")
        check(self.seed >= 0, f"expected a seed of at least 0, got {self.seed}")

    @property
    def rate(self) -> float | None:
        """Requests per second; None for a trace as it is."""
        return self.arrivals.rate

    def at_rate(self, rate: float) -> "WorkloadSpec":
        """The same requests at another mean rate.

        Raises:
            ConfigError: it is no rate, or too high for the duration.
        """
        try:
            return msgspec.structs.replace(self, arrivals=msgspec.structs.replace(self.arrivals, rate=rate))
        except ValueError as error:
            raise ConfigError(str(error)) from error


def load_workload(file: Path, overrides: Mapping[str, Any] | None = None) -> WorkloadSpec:
    """Read a workload; `overrides` win over the file.

    Raises:
        ConfigError: it cannot be read, or describes no workload; the message names file, key and value.
    """
    return read_workload({**read_mapping(file), **(overrides or {})}, str(file), file.parent)


def read_workload(values: Mapping[str, Any], source: str, folder: Path = Path()) -> WorkloadSpec:
    """The workload that `values` from `source` describe; a trace's file is sought from `folder`.

    Raises:
        ConfigError: they describe none.
    """
    try:
        spec = msgspec.convert(values, WorkloadSpec)
    except msgspec.ValidationError as error:
        raise ConfigError(f"{source}: {error}") from error
    if isinstance(spec.arrivals, Trace):
        trace = msgspec.structs.replace(spec.arrivals, file=str(folder / spec.arrivals.file))
        return msgspec.structs.replace(spec, arrivals=trace)
    return spec
