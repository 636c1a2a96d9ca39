# SPDX-License-Identifier: Apache-2.0
"""When requests come. Pure; the random generator is given."""

import math

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from vllm_epd.planner.workload.spec import Bursts, Gamma, Poisson, Steady

Times = NDArray[np.float64]
Drawn = Poisson | Gamma | Bursts | Steady


def arrival_times(arrivals: Drawn, count: int, random: Generator) -> Times:
    """The times of `count` requests, ascending, in seconds from a start at which none comes."""
    if isinstance(arrivals, Bursts):
        bursts = math.ceil(count / arrivals.size)
        times = _running(random.exponential(1.0, bursts), arrivals.rate / arrivals.size)
        return np.repeat(times, arrivals.size)[:count]
    return _running(_gaps(arrivals, count, random), arrivals.rate)


def _gaps(arrivals: Poisson | Gamma | Steady, count: int, random: Generator) -> Times:
    """Times between requests with a mean of 1; those of one seed are the same at each rate, but for the unit."""
    if isinstance(arrivals, Gamma):
        shape = arrivals.cv**-2
        return random.gamma(shape, 1 / shape, count)
    return random.exponential(1.0, count) if isinstance(arrivals, Poisson) else np.ones(count)


def _running(gaps: Times, rate: float) -> Times:
    return np.cumsum(gaps) / rate
