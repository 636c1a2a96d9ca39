# SPDX-License-Identifier: Apache-2.0
"""From the description of a workload to its requests. Pure but for reading a trace."""

from dataclasses import replace
from pathlib import Path

from numpy.random import SeedSequence, default_rng

from vllm_epd.errors import ConfigError
from vllm_epd.planner.workload.arrivals import Drawn, arrival_times
from vllm_epd.planner.workload.files import read_trace
from vllm_epd.planner.workload.requests import Request
from vllm_epd.planner.workload.shapes import Shapes
from vllm_epd.planner.workload.spec import DEFAULT_REQUESTS, Trace, WorkloadSpec


def generate(spec: WorkloadSpec, seed: int | None = None) -> tuple[Request, ...]:
    """The requests of a workload, by the time at which they come.

    Times and contents are drawn apart, so that requests of one seed are the same at each rate.

    Args:
        spec: the workload.
        seed: in the place of its own.

    Raises:
        ConfigError: a trace cannot be read or has no requests, or none comes within the duration.
    """
    of_times, of_shapes = SeedSequence(spec.seed if seed is None else seed).spawn(2)
    if isinstance(spec.arrivals, Trace):
        return _within(spec, _stretched(spec.arrivals, read_trace(Path(spec.arrivals.file))))
    drawn = Shapes(spec.classes, spec.reuse, default_rng(of_shapes))
    times = _times(spec, spec.arrivals, of_times)
    return _within(spec, tuple(Request(number, at, *drawn.draw()) for number, at in enumerate(times)))


def _times(spec: WorkloadSpec, arrivals: Drawn, seed: SeedSequence) -> list[float]:
    """As many as there are requests, or as come within the duration."""
    count = spec.requests or DEFAULT_REQUESTS
    times = arrival_times(arrivals, count, default_rng(seed))
    while spec.duration_s is not None and times[-1] <= spec.duration_s:
        count *= 2
        times = arrival_times(arrivals, count, default_rng(seed))
    return [float(each) for each in times if spec.duration_s is None or each <= spec.duration_s]


def _within(spec: WorkloadSpec, requests: tuple[Request, ...]) -> tuple[Request, ...]:
    found = tuple(each for each in requests[: spec.requests] if spec.duration_s is None or each.at <= spec.duration_s)
    if not found:
        raise ConfigError(f"no request comes within {spec.duration_s} s; raise duration_s or the rate")
    return found


def _stretched(trace: Trace, requests: tuple[Request, ...]) -> tuple[Request, ...]:
    """The same requests at the rate that is wanted, which is that of the times between them."""
    if trace.rate is None or len(requests) == 1:
        return requests
    if requests[-1].at == 0:
        raise ConfigError(f"{trace.file}: all {len(requests)} requests come at the same time, which has no rate")
    factor = (len(requests) - 1) / trace.rate / requests[-1].at
    return tuple(replace(each, at=each.at * factor) for each in requests)
