# SPDX-License-Identifier: Apache-2.0
"""What the handlers of a router work with."""

from dataclasses import dataclass

from vllm_epd.router.context import Services
from vllm_epd.router.peers import PeerTable
from vllm_epd.router.pipeline import Pipeline
from vllm_epd.router.workers.siblings import Siblings
from vllm_epd.router.workers.worker import Worker


@dataclass(frozen=True, slots=True)
class Parts:
    """The parts of one router.

    Attributes:
        services: what all requests share.
        pipeline: what serves a generating request.
        peers: the transfer agents of all instances.
        siblings: the other processes of the router.
        worker: which of several processes this is; None where there is one.
    """

    services: Services
    pipeline: Pipeline
    peers: PeerTable
    siblings: Siblings
    worker: Worker | None
