# SPDX-License-Identifier: Apache-2.0
"""The environment of an instance."""

from collections.abc import Mapping, Sequence

from vllm_epd.launch.gpus import VARIABLE


def instance_environment(
    inherited: Mapping[str, str],
    wanted: Mapping[str, str],
    *,
    gpus: Sequence[str],
    instances: int,
    cores: int,
    offline: bool,
) -> dict[str, str]:
    """All variables of one instance.

    Args:
        inherited: the user's environment; wins over what is only a default here.
        wanted: from the configuration of the role; wins over everything.
        gpus: those assigned to the instance; empty on a machine without.
        instances: how many share this machine.
        cores: how many it has.
        offline: whether the model needs nothing of a model hub.
    """
    defaults = {} if gpus else _cpu_defaults(instances, cores)
    if offline:
        # Otherwise each start would ask the hub about a model that was made here.
        defaults["HF_HUB_OFFLINE"] = "1"
    assigned = {VARIABLE: ",".join(gpus)} if gpus else {}
    return {**defaults, **inherited, **assigned, **wanted}


def _cpu_defaults(instances: int, cores: int) -> dict[str, str]:
    return {
        # GiB. By default each instance would take the same large share of the machine's memory.
        "VLLM_CPU_KVCACHE_SPACE": "1",
        # vLLM pins its threads to the first cores, for each instance the same ones.
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        # Unpinned, each instance would start a thread per core.
        "OMP_NUM_THREADS": str(max(1, cores // instances)),
    }
