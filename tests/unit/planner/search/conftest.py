# SPDX-License-Identifier: Apache-2.0
import msgspec
import pytest

from vllm_epd.planner.profile.store import load_profile
from vllm_epd.planner.search.objective import Slo
from vllm_epd.planner.search.sought import Problem
from vllm_epd.planner.search.space import walk
from vllm_epd.planner.workload.generate import generate
from vllm_epd.planner.workload.spec import Poisson, RequestClass, WorkloadSpec


class Every:
    """Answers a walk in each way that there is, one after the other."""

    def __init__(self):
        self.path, self.at, self.widths = [], 0, []

    def among(self, what, options):
        if self.at == len(self.path):
            self.path.append(0)
        self.widths = [*self.widths[: self.at], len(options)]
        chosen = options[self.path[self.at]]
        self.at += 1
        return chosen

    along = among

    def onward(self):
        """To the next way; False after the last."""
        self.at = 0
        while self.path and self.path[-1] == self.widths[len(self.path) - 1] - 1:
            self.path.pop()
        if self.path:
            self.path[-1] += 1
        return bool(self.path)


@pytest.fixture
def every():
    """All fleets of a space."""

    def fleets(space):
        chooser = Every()
        while True:
            yield walk(space, chooser)
            if not chooser.onward():
                return

    return fleets


@pytest.fixture
def problem():
    """A problem about a ready profile and requests of one kind."""

    def make(profile, slo, gpus, memory=None, rate=None, base=None, choices=None, **kind):
        spec = WorkloadSpec(Poisson(1.0), (RequestClass(**kind),))
        known = load_profile(profile) if isinstance(profile, str) else profile
        if memory is not None:
            known = msgspec.structs.replace(
                known, hardware=msgspec.structs.replace(known.hardware, memory_bytes=memory)
            )
        more = {name: value for name, value in (("base", base), ("choices", choices)) if value is not None}
        return Problem(
            profile=known,
            requests=lambda seed, count: generate(msgspec.structs.replace(spec, requests=count), seed),
            slo=Slo(*slo),
            gpus=gpus,
            rate=rate,
            **more,
        )

    return make
