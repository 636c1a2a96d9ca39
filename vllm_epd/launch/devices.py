# SPDX-License-Identifier: Apache-2.0
"""Which instance gets which GPUs."""

from collections.abc import Mapping, Sequence

from vllm_epd.errors import ConfigError

PARALLEL_FLAGS: Mapping[str, str] = {
    "--tensor-parallel-size": "tensor",
    "-tp": "tensor",
    "--pipeline-parallel-size": "pipeline",
    "-pp": "pipeline",
    "--data-parallel-size": "data",
    "-dp": "data",
}
"""Flags of `vllm serve` that multiply its number of GPUs."""


def gpus_needed(arguments: Sequence[str]) -> int:
    """How many GPUs a `vllm serve` with these arguments occupies.

    Raises:
        ConfigError: a parallel size that is no positive number.
    """
    sizes = {"tensor": 1, "pipeline": 1, "data": 1}
    for index, argument in enumerate(arguments):
        flag, equals, value = argument.partition("=")
        kind = PARALLEL_FLAGS.get(flag.replace("_", "-"))
        if kind is None:
            continue
        if not equals:
            value = arguments[index + 1] if index + 1 < len(arguments) else ""
        if not value.isdecimal() or int(value) == 0:
            raise ConfigError(f"{flag} needs a positive number, got {value!r}")
        sizes[kind] = int(value)
    return sizes["tensor"] * sizes["pipeline"] * sizes["data"]


def assign_gpus(needs: Mapping[str, int], gpus: Sequence[str], share: bool) -> dict[str, tuple[str, ...]]:
    """Give each instance its GPUs, in order.

    Args:
        needs: number of GPUs by name of instance.
        gpus: what there is; empty on a machine without, where nobody gets any.
        share: whether to start over at the first GPU when all are taken.

    Raises:
        ConfigError: not enough GPUs.
    """
    if not gpus:
        return dict.fromkeys(needs, ())
    largest, total = max(needs, key=needs.__getitem__), sum(needs.values())
    if needs[largest] > len(gpus):
        raise ConfigError(f"instance {largest} needs {needs[largest]} GPUs, and there are {len(gpus)}")
    if total > len(gpus) and not share:
        wanted = ", ".join(f"{name} {need}" for name, need in needs.items())
        raise ConfigError(
            f"this topology needs {total} GPUs ({wanted}), and there are {len(gpus)};"
            " --share-gpus lets instances share them, each then with its own --gpu-memory-utilization"
        )
    assigned, start = {}, 0
    for name, need in needs.items():
        assigned[name] = tuple(gpus[(start + offset) % len(gpus)] for offset in range(need))
        start += need
    return assigned
