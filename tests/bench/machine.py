# SPDX-License-Identifier: Apache-2.0
"""On what, and of what, the numbers are."""

import importlib.metadata
import os
import platform
import subprocess
from pathlib import Path
from typing import Any

import psutil

from vllm_epd.planner.measure.machine import processor

ROOT = Path(__file__).parents[2]


def describe_machine() -> dict[str, Any]:
    """Processor, memory and versions, and how busy the machine is before anything is measured."""
    return {
        "cpu": processor(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "load_before": round(os.getloadavg()[0], 2),
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.release()}",
        "vllm": importlib.metadata.version("vllm"),
    }


def describe_commit() -> str:
    """The commit of the checkout, with `-dirty` where files differ from it; `unknown` outside of one."""
    try:
        command = ["git", "-C", str(ROOT), "describe", "--always", "--abbrev=40", "--exclude=*", "--dirty"]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
