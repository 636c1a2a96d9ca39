# SPDX-License-Identifier: Apache-2.0
"""What a start takes from the machine: ports and a folder for logs."""

import socket
from datetime import datetime
from random import Random

import pytest

from vllm_epd.errors import ConfigError
from vllm_epd.launch.logs import last_lines, make_log_dir
from vllm_epd.launch.ports import RANGE, check_port, free_ports

NOW = datetime(2030, 1, 2, 3, 4, 5)


def test_ports_are_free_different_and_in_range():
    ports = free_ports("127.0.0.1", 200, Random(1))
    assert len(set(ports)) == 200
    assert set(ports) <= set(RANGE)
    for port in ports:
        check_port("127.0.0.1", port)


def test_taken_ports_are_left_out():
    first = free_ports("127.0.0.1", 3, Random(1))
    with socket.create_server(("127.0.0.1", first[1])):
        assert first[1] not in free_ports("127.0.0.1", 3, Random(1))
        with pytest.raises(ConfigError, match=f"cannot listen on 127.0.0.1:{first[1]}: Address already in use"):
            check_port("127.0.0.1", first[1])


def test_port_that_is_bound_but_not_listened_on_is_taken():
    (port,) = free_ports("127.0.0.1", 1, Random(2))
    with socket.socket() as bound:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(("127.0.0.1", port))
        assert port not in free_ports("127.0.0.1", 1, Random(2))


@pytest.mark.parametrize("host", ["203.0.113.1", "no.such.host.invalid"])
def test_host_that_is_not_this_machine_is_refused(host):
    with pytest.raises(ConfigError, match=f"cannot listen on {host}:8000"):
        check_port(host, 8000)


def test_logs_go_to_a_new_folder_of_the_users_state(tmp_path):
    folder = make_log_dir(None, {"XDG_STATE_HOME": str(tmp_path)}, NOW)
    assert folder.parent == tmp_path / "vllm_epd"
    assert folder.name.startswith("2030-01-02T03-04-05-")
    assert folder.is_dir()


def test_logs_go_to_the_folder_that_is_chosen(tmp_path):
    assert make_log_dir(str(tmp_path / "a/b"), {}, NOW) == tmp_path / "a/b"
    assert make_log_dir(str(tmp_path / "a/b"), {}, NOW).is_dir()


def test_folder_that_cannot_be_made_is_refused(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="cannot make the log folder"):
        make_log_dir(str(tmp_path / "file/logs"), {}, NOW)


def test_last_lines_are_the_last_ones(tmp_path):
    log = tmp_path / "log"
    log.write_text("".join(f"line {number} {'x' * 100}\n" for number in range(5000)) + "no newline")
    lines = last_lines(log, 3)
    assert [line[:9] for line in lines] == ["line 4998", "line 4999", "no newlin"]
    assert last_lines(tmp_path / "none") == []


def test_log_that_is_no_text_is_shown_all_the_same(tmp_path):
    log = tmp_path / "log"
    log.write_bytes(b"caf\xe9\n")
    assert last_lines(log) == ["caf\ufffd"]
