# SPDX-License-Identifier: Apache-2.0
"""vLLM's NIXL KV connector without spinning threads where cores are few."""

import functools
import os

MIN_CORES = 16


def quiet_progress_thread() -> None:
    """Start vLLM's NIXL agents without a progress thread on a machine with few cores; a second call does nothing.

    Called in the worker before its KV connector is made. The thread spins: on such a machine it takes the core that
    the engine needs, in every instance. Without it, transfers make progress when the engine polls them, which it does
    every millisecond while one is pending.
    """
    if (os.cpu_count() or 1) >= MIN_CORES:
        return
    from vllm.distributed.kv_transfer.kv_connector.v1.nixl import base_worker

    config = base_worker.nixl_agent_config
    if config is None or isinstance(config, functools.partial):
        return
    # ### PATCH START nixl-progress
    base_worker.nixl_agent_config = functools.partial(config, enable_prog_thread=False)
    # ### PATCH END
