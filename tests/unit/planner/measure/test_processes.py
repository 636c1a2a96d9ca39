# SPDX-License-Identifier: Apache-2.0
"""Processor time of servers on this host, with what comes from them."""

import subprocess
import sys
import time

import pytest

from vllm_epd.planner.measure.processes import Processes

SERVER = """
import socket, subprocess, sys
server = socket.create_server(("127.0.0.1", 0))
print(server.getsockname()[1], flush=True)
sys.stdin.readline()
subprocess.run([sys.executable, "-c", "import time\\nwhile time.process_time() < 0.3: pass\\nprint('burnt', flush=True)"
                "\\ninput()"])
"""


@pytest.fixture
def server():
    child = subprocess.Popen(
        [sys.executable, "-c", SERVER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
    )
    try:
        yield child
    finally:
        child.kill()
        child.communicate()


def test_a_server_is_found_by_its_port_and_its_children_count(server):
    port = int(server.stdout.readline())
    processes = Processes.of([f"http://127.0.0.1:{port}"])
    before = processes.seconds()
    server.stdin.write("\n")
    server.stdin.flush()
    assert server.stdout.readline() == "burnt\n"
    time.sleep(0.02)
    assert 0.2 < processes.seconds() - before < 2


@pytest.mark.parametrize("url", ["http://10.1.2.3:8000", "http://127.0.0.1:1"])
def test_servers_elsewhere_and_nobody_have_none(url):
    assert Processes.of([url]) is None
