# SPDX-License-Identifier: Apache-2.0
"""Memory that is freed, in a process of its own."""

import subprocess
import sys

import pytest

PICTURES = """
import resource
from vllm_epd.memory import keep_freed_memory

def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

def use():
    for _ in range(10):
        pieces = [bytes([number]) * (20 << 20) for number in range(6)]
        del pieces

if {keep}:
    keep_freed_memory()
use()
before = faults()
use()
print(faults() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="mallopt is glibc's")
def test_what_is_freed_is_used_again_without_clearing_pages() -> None:
    assert _faults(keep=False) > 1000
    assert _faults(keep=True) < 100


def _faults(*, keep: bool) -> int:
    done = subprocess.run(
        [sys.executable, "-c", PICTURES.format(keep=keep)], capture_output=True, text=True, check=True
    )
    return int(done.stdout)
