# SPDX-License-Identifier: Apache-2.0
"""The systems that are measured, one after the other and in this order."""

from tests.bench.systems.base import Running, System
from tests.bench.systems.ours import Ours
from tests.bench.systems.single import Single
from tests.bench.systems.stock import Stock

IN_PROCESS = ("--distributed-executor-backend", "vllm.v1.executor.uniproc_executor.UniProcExecutor")
"""What a role chooses on CPU, see `vllm_epd.roles.derive`; tells its share in a difference from the rest."""

SYSTEMS: tuple[System, ...] = (Stock(), Ours(), Single())
EXTRA: tuple[System, ...] = (
    Stock("stock-in-process", IN_PROCESS),
    Stock("stock-t0", (), {"num_threads": 0}),
    Stock("stock-t1", (), {"num_threads": 1}),
    Stock("stock-t0-in-process", IN_PROCESS, {"num_threads": 0}),
    Single("single-in-process", IN_PROCESS),
)
"""Measured only when asked for by name."""

__all__ = ["EXTRA", "SYSTEMS", "Running", "System"]
