# SPDX-License-Identifier: Apache-2.0
"""Memory that is freed in a process of an instance."""

import os
import subprocess
import sys

import pytest

from vllm_epd.types import ROLE_ENV

PICTURES = """
import resource
from vllm_epd import plugin

def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

def use():
    for _ in range(10):
        pieces = [bytes([number]) * (20 << 20) for number in range(6)]
        del pieces

# Without the steps that load vLLM.
plugin.ALWAYS = ()
plugin.WITH_ROLE = tuple(step for step in plugin.WITH_ROLE if step[1].startswith("vllm_epd.memory:"))
plugin.register()
use()
before = faults()
use()
print(faults() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="mallopt is glibc's")
def test_with_a_role_what_is_freed_is_used_again_without_clearing_pages() -> None:
    assert _faults({}) > 1000
    assert _faults({ROLE_ENV: "encode"}) < 100


def _faults(role: dict[str, str]) -> int:
    environment = {name: value for name, value in os.environ.items() if name != ROLE_ENV} | role
    done = subprocess.run([sys.executable, "-c", PICTURES], env=environment, capture_output=True, text=True, check=True)
    return int(done.stdout)
