# SPDX-License-Identifier: Apache-2.0
"""On what a profile was taken, as this host tells; instances elsewhere are to be described by the user."""

import os
import platform
import shutil
import subprocess
from pathlib import Path

from vllm_epd.planner.profile.profile import Hardware

MIB = 2**20


def this_machine() -> Hardware:
    """The first GPU of this host, or its processor where there is none."""
    cores = len(os.sched_getaffinity(0))
    gpu = _gpu()
    if gpu is not None:
        name, memory_bytes = gpu
        return Hardware(name=name, device="cuda", memory_bytes=memory_bytes, cores=cores)
    memory_bytes = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return Hardware(name=processor(), device="cpu", memory_bytes=memory_bytes, cores=cores)


def _gpu() -> tuple[str, int] | None:
    """Name and bytes of memory."""
    if shutil.which("nvidia-smi") is None:
        return None
    command = ["nvidia-smi", "--query-gpu=name,memory.total", "--format=csv,noheader,nounits"]
    try:
        listed = subprocess.run(command, capture_output=True, text=True, check=True, timeout=30).stdout
    except (OSError, subprocess.SubprocessError):
        return None
    name, _, memory = listed.partition("\n")[0].rpartition(",")
    return name.strip(), int(memory) * MIB


def processor() -> str:
    """The model of this host's processor, or its architecture where the kernel does not tell."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.machine())
