# SPDX-License-Identifier: Apache-2.0
"""The kinds of experiments: what a configuration of each says, and the function that carries it out."""

from collections.abc import Callable, Mapping
from typing import Any

from experiments.kinds import attainment, goodput, memory, search, switching, ttft
from experiments.result import Findings
from experiments.setting import Experiment

Kind = (
    ttft.Ttft
    | search.Search
    | memory.MostImages
    | memory.LargestBatch
    | memory.KvShare
    | attainment.Attainment
    | switching.SwitchingRoles
    | goodput.Goodputs
)
"""What the field `kind` of a configuration tells apart."""

KINDS: Mapping[type[Experiment], Callable[[Any], Findings]] = {
    ttft.Ttft: ttft.run,
    search.Search: search.run,
    memory.MostImages: memory.most,
    memory.LargestBatch: memory.batches,
    memory.KvShare: memory.shares,
    attainment.Attainment: attainment.run,
    switching.SwitchingRoles: switching.run,
    goodput.Goodputs: goodput.run,
}
