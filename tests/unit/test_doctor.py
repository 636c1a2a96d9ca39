# SPDX-License-Identifier: Apache-2.0
"""`vllm-epd doctor` as a user runs it: real transfers, and what it says where there can be none."""

import os
import re
import signal
import subprocess
import sys
from contextlib import contextmanager
from io import StringIO
from uuid import uuid4

import pytest

pytest.importorskip("torch")
pytest.importorskip("nixl")

from rich.console import Console

from vllm_epd.cli import main
from vllm_epd.doctor import command
from vllm_epd.doctor.consumer import Consumer
from vllm_epd.doctor.examine import Diagnosis, Finding
from vllm_epd.doctor.items import content, keys
from vllm_epd.doctor.producer import Offer, format_size, free_address, producer_process
from vllm_epd.errors import TransferError
from vllm_epd.transfer.tiers import TransferMemory

COMMAND = (sys.executable, "-P", "-m", "vllm_epd.cli", "doctor")
LIMIT_S = 240
SIZE = 64 << 10
SUBNET = "10.231.77"


def environment(token=""):
    return {**os.environ, "COLUMNS": "200", "EPD_TOKEN": token, "CUDA_VISIBLE_DEVICES": ""}


def run(*arguments, token="", prefix=()):
    command = [*prefix, *COMMAND, *arguments]
    return subprocess.run(command, env=environment(token), capture_output=True, text=True, timeout=LIMIT_S)


def _take_interrupts():
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@contextmanager
def listening(place, *arguments, token="", prefix=()):
    """`vllm-epd doctor --listen` until the context closes; gives the lines it prints first.

    It takes Ctrl-C also where these tests run in the background of a shell, which has it ignored.
    """
    command = [*prefix, *COMMAND, "--listen", place, *arguments]
    process = subprocess.Popen(
        command, env=environment(token), stdout=subprocess.PIPE, text=True, preexec_fn=_take_interrupts
    )
    try:
        yield [process.stdout.readline() for _ in range(2)]
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 0
    finally:
        process.kill()
        process.communicate()


def row(output, tier):
    """What the table says of a tier."""
    (line,) = [line for line in output.splitlines() if line.split()[:1] == [tier]]
    return line


@pytest.fixture
def place():
    return free_address().removeprefix("tcp://")


def test_host_tiers_work_between_two_instances_of_this_machine():
    shown = run()
    assert (shown.returncode, shown.stderr) == (0, "")
    assert re.search(r"host memory +yes +yes +\d+ us +\d+\.\d\d GB/s +ok", row(shown.stdout, "shm"))
    assert re.search(r"host memory +yes +\d+ us +\d+\.\d\d GB/s +ok", row(shown.stdout, "nixl"))


def test_a_transport_that_cannot_be_there_is_exit_code_1_with_the_reason():
    shown = run("--transport", "cuda_ipc")
    assert shown.returncode == 1
    assert "no: the other instance does not start: cuda_ipc moves device memory" in row(shown.stdout, "cuda_ipc")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--transport", "pigeon"], "unknown transport 'pigeon'; known: auto, cuda_ipc, nixl, shm"),
        (["--peer", "host:0"], "'host:0' is not HOST or HOST:PORT"),
        (["--listen", ":1"], "':1' is not HOST or HOST:PORT"),
        (["--", "x"], "doctor takes no arguments after --"),
    ],
)
def test_mistake_is_exit_code_2(arguments, message, capsys):
    assert main(["doctor", *arguments]) == 2
    assert message in capsys.readouterr().err


def test_listening_and_fetching_exclude_each_other(capsys):
    with pytest.raises(SystemExit) as end:
        main(["doctor", "--listen", "a", "--peer", "b"])
    assert end.value.code == 2
    assert "not allowed with" in capsys.readouterr().err


def test_peer_fetches_from_who_listens_with_the_same_secret(place):
    with listening(place, token="s3cret") as lines:
        assert lines[1] == f"  EPD_TOKEN=... vllm-epd doctor --peer {place}\n"
        shown = run("--peer", place, "--transport", "shm", token="s3cret")
        assert shown.returncode == 0
        assert row(shown.stdout, "shm").endswith("ok    ")
        foreign = run("--peer", place, "--transport", "shm", token="other")
        assert foreign.returncode == 1
        assert "another shared secret" in row(foreign.stdout, "shm")


def test_an_address_in_use_is_exit_code_1(place):
    with listening(place, "--transport", "shm"):
        shown = run("--listen", place, "--transport", "shm")
    assert shown.returncode == 1
    assert f"cannot bind tcp://{place}" in shown.stdout


@pytest.fixture
def two_hosts():
    """Two network namespaces with a wire between them; the commands that run something in each."""
    names = [f"epd-{uuid4().hex[:8]}" for _ in range(2)]
    wires = [f"e{uuid4().hex[:8]}" for _ in range(2)]

    def ip(*arguments):
        subprocess.run(["ip", *arguments], check=True, capture_output=True)

    try:
        try:
            for name in names:
                ip("netns", "add", name)
            ip("link", "add", wires[0], "type", "veth", "peer", "name", wires[1])
            for number, (name, wire) in enumerate(zip(names, wires, strict=True), 1):
                ip("link", "set", wire, "netns", name)
                ip("-n", name, "address", "add", f"{SUBNET}.{number}/24", "dev", wire)
                ip("-n", name, "link", "set", wire, "up")
                ip("-n", name, "link", "set", "lo", "up")
        except (OSError, subprocess.CalledProcessError) as error:
            pytest.skip(f"network namespaces need `ip` and CAP_NET_ADMIN: {error}")
        yield [("ip", "netns", "exec", name) for name in names]
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "delete", name], capture_output=True)


def test_between_network_namespaces_shm_is_out_and_the_choice_falls_on_nixl(two_hosts):
    here, there = two_hosts
    place = f"{SUBNET}.1:8790"
    with listening(f"{SUBNET}.1", prefix=here) as lines:
        assert lines[1] == f"  vllm-epd doctor --peer {place}\n"
        shown = run("--peer", place, prefix=there)
    assert shown.returncode == 0, shown.stdout
    assert "does not share this host's memory" in shown.stdout
    assert re.search(r"host memory +yes +yes +\d+ us", row(shown.stdout, "nixl"))


def test_what_does_not_work_is_never_called_the_default():
    works, fails = Finding("nixl", "cpu", latency_s=1e-3, bytes_per_s=1e9), Finding("shm", "cpu", "no [room] here")
    diagnosis = Diagnosis((fails, works), Finding("auto", "cpu", latency_s=1e-3, bytes_per_s=1e9))
    assert diagnosis.chosen is works
    assert Diagnosis((works,), fails).chosen is None
    console = Console(width=150, file=StringIO())
    console.print(command._table("title", diagnosis))
    assert "no: no [room] here" in row(console.file.getvalue(), "shm")


def test_bytes_that_differ_are_seen():
    address = free_address()
    with producer_process(Offer(address, (SIZE,), transport="shm")):
        consumer = Consumer(address, SIZE, TransferMemory(SIZE, transport="shm"), timeout_s=5)
        try:
            first, second = keys(SIZE)[:2]
            consumer.fetch()
            consumer._expected[second][SIZE - 1] += 1
            with pytest.raises(TransferError, match=f"the bytes of {second} differ"):
                consumer.fetch()
        finally:
            consumer.close()
    assert not content(first, SIZE).equal(content(second, SIZE))


@pytest.mark.parametrize(("nbytes", "text"), [(SIZE, "64 KiB"), (1 << 20, "1 MiB"), (16 << 20, "16 MiB")])
def test_sizes_are_readable(nbytes, text):
    assert format_size(nbytes) == text
