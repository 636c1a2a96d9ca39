# SPDX-License-Identifier: Apache-2.0
"""What experiments have in common: systems, workloads, profiles and their variants, runs over seeds. Pure."""

from collections.abc import Callable, Sequence
from enum import StrEnum
from functools import cache
from statistics import fmean, stdev
from typing import TypeVar

import msgspec

from experiments.result import rounded
from vllm_epd.planner.fleet import Fleet, Limits
from vllm_epd.planner.profile.costs import encode_s, prefill_pairs, prefill_s, preprocess_s
from vllm_epd.planner.profile.media import measure
from vllm_epd.planner.profile.profile import PreprocessCost, Profile
from vllm_epd.planner.profile.store import load_profile
from vllm_epd.planner.workload.checks import parse_size
from vllm_epd.planner.workload.generate import generate
from vllm_epd.planner.workload.requests import Item, Kind, Request
from vllm_epd.planner.workload.spec import Poisson, RequestClass, WorkloadSpec
from vllm_epd.topology import Topology

E = TypeVar("E", bound="Experiment")


class Experiment(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="kind"):
    """What every configuration says.

    Attributes:
        title: what it shows, and where that is in the paper.
        where_off: why our numbers are not the paper's.
    """

    title: str
    where_off: str = ""


class Drawn(Experiment, frozen=True, kw_only=True):
    """One in which requests are drawn.

    Attributes:
        count: requests of a run.
        seeds: runs, each with other requests.
    """

    count: int = 100
    seeds: int = 20


def reduced(experiment: E, count: int = 12, seeds: int = 2) -> E:
    """The same with fewer requests and seeds, as a trial."""
    if isinstance(experiment, Drawn):
        return msgspec.structs.replace(experiment, count=count, seeds=seeds)
    return experiment


class System(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A fleet as the paper ran it: batches of one, first come first served, preprocessing in the worker of a device.

    Attributes:
        topology: its instances.
        encode_items: as all others, see `fleet.Limits` and `fleet.Fleet`.
        prefill_sequences: of P.
        decode_sequences: of D.
        batched_tokens: the paper's bound on prompts.
        spread: IRP over the images of a request.
        irp_degree: IRP within an image, which the paper's code has not.
        kv_share: its scripts' half.
        workers_preprocess: as its code.
        preprocess_workers: only where they do not.
        chunked: no prompt is cut.
        pulls: its D takes what P has computed.
    """

    topology: str
    encode_items: int = 1
    prefill_sequences: int = 1
    decode_sequences: int = 1
    batched_tokens: int = 49_152
    spread: bool = True
    irp_degree: int | None = 1
    kv_share: float = 0.5
    workers_preprocess: bool = True
    preprocess_workers: int = 1
    chunked: bool = False
    pulls: bool = True

    @property
    def fleet(self) -> Fleet:
        """What is simulated."""
        return Fleet(
            Topology.parse(self.topology),
            Limits(self.encode_items, self.prefill_sequences, self.decode_sequences, self.batched_tokens),
            spread=self.spread,
            irp_degree=self.irp_degree,
            kv_share=self.kv_share,
            workers_preprocess=self.workers_preprocess,
            preprocess_workers=self.preprocess_workers,
            chunked=self.chunked,
            pulls=self.pulls,
        )


class Variant(StrEnum):
    """Of a profile."""

    PLAIN = "plain"
    OLD_HOST = "old host"


class Anchor(msgspec.Struct, frozen=True):
    """A time that is known of one request without queues: preprocessing, encode and prefill on one device.

    Attributes:
        profile: name of the model's.
        images: of the request.
        size: of each.
        text_tokens: of the request.
        seconds: what it took.
    """

    profile: str
    images: int
    size: str
    text_tokens: int
    seconds: float


STORED = Anchor("minicpm-v-2.6@a100-80gb-eager", images=2, size="4032x3024", text_tokens=22, seconds=1.345)
"""Of the outputs that lie in the paper's code, which are in none of its tables: the mean after warming up."""


def profile_of(name: str, variant: Variant) -> Profile:
    """A profile, its preprocessing as on the host of our measurement or as on the paper's."""
    profile = load_profile(name)
    if variant is Variant.PLAIN:
        return profile
    factor = host_factor(STORED)
    slower = PreprocessCost(
        **{key: value * factor for key, value in msgspec.structs.asdict(profile.preprocess).items()}
    )
    return msgspec.structs.replace(profile, preprocess=slower)


@cache
def host_factor(anchor: Anchor) -> float:
    """How many times longer preprocessing takes where a request takes what the anchor says.

    The device's part is as derived, so that whatever else is missing there counts as preprocessing too.
    """
    profile = load_profile(anchor.profile)
    item = measure(profile, image(anchor.size))
    tokens = anchor.images * item.tokens + anchor.text_tokens
    encode = encode_s(profile.encode, anchor.images * item.patches, anchor.images * item.pairs)
    prefill = prefill_s(profile.prefill, tokens, prefill_pairs(tokens, 0))
    return (anchor.seconds - encode - prefill) / (anchor.images * preprocess_s(profile.preprocess, item))


def image(size: str) -> Item:
    """An image of `WIDTHxHEIGHT`."""
    return Item(Kind.IMAGE, *parse_size(size))


def poisson(kind: RequestClass, rate: float, count: int, seed: int) -> tuple[Request, ...]:
    """So many requests of one kind."""
    return generate(WorkloadSpec(Poisson(rate), (kind,), requests=count), seed)


def over_seeds(seeds: int, run: Callable[[int], float]) -> tuple[float, float]:
    """Mean and standard deviation of what comes out for each seed."""
    return summary([run(seed) for seed in range(seeds)])


def summary(values: Sequence[float]) -> tuple[float, float]:
    """Mean and standard deviation, as they are kept."""
    return rounded(fmean(values)), rounded(stdev(values)) if len(values) > 1 else 0.0
