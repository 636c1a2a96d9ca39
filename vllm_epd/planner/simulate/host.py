# SPDX-License-Identifier: Apache-2.0
"""What a simulated instance runs on. Pure."""

from vllm_epd.planner.simulate.events import Cores, Events, Worker
from vllm_epd.planner.simulate.station import Station


class Host:
    """What an instance runs on.

    Attributes:
        events: the time.
        cores: of the host, which other instances use too.
        worker: what steps run on: a device of its own, or the same cores.
        station: its API server, on the cores.
    """

    __slots__ = ("cores", "events", "station", "worker")

    def __init__(self, events: Events, cores: Cores, worker: Worker, preprocess_workers: int) -> None:
        self.events = events
        self.cores = cores
        self.worker = worker
        self.station = Station(events, cores, preprocess_workers)
