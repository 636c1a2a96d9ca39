# SPDX-License-Identifier: Apache-2.0
"""Which GPUs this machine has, found without torch."""

import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path

VARIABLE = "CUDA_VISIBLE_DEVICES"
DRIVER = Path("/proc/driver/nvidia/gpus")
TIMEOUT_S = 30.0


def find_gpus(environment: Mapping[str, str], driver: Path = DRIVER) -> tuple[str, ...]:
    """Names of the usable GPUs, as CUDA_VISIBLE_DEVICES takes them; empty without any.

    CUDA_VISIBLE_DEVICES decides where it is set, otherwise `nvidia-smi`, otherwise the driver's folder.
    """
    if VARIABLE in environment:
        return _visible(environment[VARIABLE])
    program = shutil.which("nvidia-smi", path=environment.get("PATH"))
    count = _count_listed(program) if program else None
    if count is None:
        count = sum(1 for _ in driver.iterdir()) if driver.is_dir() else 0
    return tuple(str(index) for index in range(count))


def _visible(value: str) -> tuple[str, ...]:
    """What CUDA makes of the variable: it stops at the first name that is no device, such as -1."""
    names = []
    for name in (part.strip() for part in value.split(",")):
        if not name or name.startswith("-"):
            break
        names.append(name)
    return tuple(names)


def _count_listed(program: str) -> int | None:
    """Number of GPUs that `nvidia-smi -L` lists; None when it fails."""
    try:
        shown = subprocess.run([program, "-L"], capture_output=True, text=True, check=True, timeout=TIMEOUT_S)
    except (OSError, subprocess.SubprocessError):
        return None
    return sum(line.startswith("GPU ") for line in shown.stdout.splitlines())
