# SPDX-License-Identifier: Apache-2.0
"""The fleet that is simulated or sought: a topology and how its instances are run. Pure."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from vllm_epd.topology import Topology
from vllm_epd.types import Role

AUTO = None


@dataclass(frozen=True, slots=True)
class Limits:
    """How much one instance does at once.

    Attributes:
        encode_items: media items (or shards of them) of one encode batch.
        prefill_sequences: prompts that one step works on.
        decode_sequences: sequences that one step generates for.
        batched_tokens: tokens of one step, prompts and generated ones together; prompts are cut to that (chunked
            prefill).
    """

    encode_items: int = 8
    prefill_sequences: int = 8
    decode_sequences: int = 128
    batched_tokens: int = 8192


@dataclass(frozen=True, slots=True)
class Fleet:
    """A topology, and how it is run.

    Attributes:
        topology: which instances.
        limits: how much each does at once.
        policies: how an instance of a stage is chosen, by names of `router.policies`.
        orders: who of those that wait is next, by names of `router.ordering`.
        spread: the items of one request are shared out over the encoders; otherwise one of them has all.
        irp_degree: as how many shards one item is encoded; None: as many as there are idle encoders, if it is large.
        tier: name of the link between instances.
        memory_share: of a device's memory that may be used.
        kv_share: of what is free on a device beside weights, for KV caches; the rest is for embeddings and work.
        workers_preprocess: the instance that encodes cannot do anything else meanwhile, as where the worker of the
            device preprocesses too; otherwise cores of its host do it beside.
        preprocess_workers: items that one instance preprocesses at once, otherwise.
        cores: of each host; None: as in the profile.
        instances_per_host: devices that share a host's cores.
        pulls: D takes a sequence when its prompt is computed and there is a place for it, as the paper's D does; until
            then its KV cache stays where it was computed. Otherwise both places are taken at once, as the router does.
        chunked: prompts of several steps share each with sequences that generate; otherwise prompts go first, whole.
    """

    topology: Topology
    limits: Limits = Limits()
    policies: Mapping[Role, str] = field(default_factory=dict)
    orders: Mapping[Role, str] = field(default_factory=dict)
    spread: bool = True
    irp_degree: int | None = AUTO
    tier: str = "cuda_ipc"
    memory_share: float = 0.9
    kv_share: float = 0.8
    workers_preprocess: bool = False
    preprocess_workers: int = 1
    cores: int | None = None
    instances_per_host: int = 8
    chunked: bool = True
    pulls: bool = False
