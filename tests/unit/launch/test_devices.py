# SPDX-License-Identifier: Apache-2.0
"""GPUs: how many are needed, who gets which, which there are."""

import pytest

from vllm_epd.errors import ConfigError
from vllm_epd.launch.devices import assign_gpus, gpus_needed
from vllm_epd.launch.gpus import find_gpus


@pytest.mark.parametrize(
    ("arguments", "needed"),
    [
        ([], 1),
        (["--tensor-parallel-size", "4"], 4),
        (["--tensor-parallel-size=4"], 4),
        (["--tensor_parallel_size", "4"], 4),
        (["-tp", "2"], 2),
        (["-tp=2", "-pp", "3"], 6),
        (["-tp", "2", "--data-parallel-size", "2", "--max-model-len", "8"], 4),
        (["-tp", "2", "-tp", "4"], 4),
        (["--tensor-parallel-size-of-something-else", "4"], 1),
    ],
)
def test_arguments_say_how_many_are_needed(arguments, needed):
    assert gpus_needed(arguments) == needed


@pytest.mark.parametrize("arguments", [["-tp"], ["-tp", "two"], ["-tp=0"], ["--tensor-parallel-size", "-1"]])
def test_bad_parallel_size_is_refused(arguments):
    with pytest.raises(ConfigError, match="needs a positive number"):
        gpus_needed(arguments)


@pytest.mark.parametrize(
    ("needs", "gpus", "share", "assigned"),
    [
        ({"E0": 1, "P0": 2, "D0": 1}, "0123", False, {"E0": "0", "P0": "12", "D0": "3"}),
        ({"E0": 1, "PD0": 1}, "0123", False, {"E0": "0", "PD0": "1"}),
        ({"E0": 1, "P0": 1, "D0": 1}, "01", True, {"E0": "0", "P0": "1", "D0": "0"}),
        ({"E0": 1, "PD0": 2}, "01", True, {"E0": "0", "PD0": "10"}),
        ({"E0": 1, "PD0": 2}, "", False, {"E0": "", "PD0": ""}),
    ],
)
def test_gpus_are_dealt_in_order(needs, gpus, share, assigned):
    assert assign_gpus(needs, gpus, share) == {name: tuple(each) for name, each in assigned.items()}


def test_too_few_gpus_are_refused_with_the_numbers():
    message = r"needs 4 GPUs \(E0 1, P0 2, D0 1\), and there are 3; --share-gpus"
    with pytest.raises(ConfigError, match=message):
        assign_gpus({"E0": 1, "P0": 2, "D0": 1}, "012", share=False)


@pytest.mark.parametrize("share", [False, True])
def test_instance_larger_than_the_machine_is_refused(share):
    with pytest.raises(ConfigError, match="instance P0 needs 4 GPUs, and there are 3"):
        assign_gpus({"E0": 1, "P0": 4}, "012", share)


@pytest.mark.parametrize(
    ("value", "gpus"),
    [
        ("", ()),
        ("-1", ()),
        ("0", ("0",)),
        ("2, 3", ("2", "3")),
        ("GPU-8f1,MIG-4a2", ("GPU-8f1", "MIG-4a2")),
        ("1,-1,2", "1"),
    ],
)
def test_variable_decides_as_cuda_reads_it(value, gpus, tmp_path):
    (tmp_path / "0000:01:00.0").mkdir()
    assert find_gpus({"CUDA_VISIBLE_DEVICES": value, "PATH": ""}, tmp_path) == tuple(gpus)


@pytest.fixture
def nvidia_smi(tmp_path):
    def write(script):
        program = tmp_path / "bin" / "nvidia-smi"
        program.parent.mkdir()
        program.write_text(f"#!/bin/sh\n{script}\n")
        program.chmod(0o755)
        return {"PATH": str(program.parent)}

    return write


def test_program_lists_them(nvidia_smi, tmp_path):
    script = '[ "$1" = -L ] && echo "GPU 0: A (UUID: GPU-1)" && echo "  MIG 1g" && echo "GPU 1: A (UUID: GPU-2)"'
    assert find_gpus(nvidia_smi(script), tmp_path / "none") == ("0", "1")


def test_driver_is_asked_when_the_program_fails(nvidia_smi, tmp_path):
    driver = tmp_path / "gpus"
    for name in ("0000:01:00.0", "0000:02:00.0", "0000:03:00.0"):
        (driver / name).mkdir(parents=True)
    assert find_gpus(nvidia_smi("echo GPU 0; exit 9"), driver) == ("0", "1", "2")
    assert find_gpus({"PATH": ""}, driver) == ("0", "1", "2")


def test_machine_without_any_has_none(tmp_path):
    assert find_gpus({"PATH": ""}, tmp_path / "none") == ()
